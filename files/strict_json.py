"""Reading JSON and nothing else: Python's reader takes more, and may run out of stack."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from files.regular_file import read_regular_file

# More than any count, size or seed; Python itself takes integers that no float can hold.
_MAX_DIGITS = 20


def load_strict(data: bytes | str) -> Any:
    """Read strict JSON.

    Args:
        data: The text, in UTF-8 if it is bytes.

    Raises:
        ValueError: If it is not JSON, nested too deeply, names a key of an object twice, or holds
            a number that is not finite or has more digits than any that is written.
    """
    try:
        return json.loads(
            data,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short_int,
        )
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice: readers differ in which of the two counts."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!a} is there twice")
    return value


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits")
    return int(text)


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object from a regular file.

    Args:
        path: The file.
        max_bytes: More than any honest file of this kind holds.

    Raises:
        OSError: If it cannot be read, is a link, a pipe or the like, or too large.
        ValueError: If it holds something else, or numbers that are none.
    """
    content = load_strict(read_regular_file(path, max_bytes))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content
