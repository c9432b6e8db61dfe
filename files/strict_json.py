"""Reading JSON and nothing else: Python's reader takes more, and may run out of stack."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from files.regular_file import read_regular_file


def load_strict(data: bytes | str, parse_int: Callable[[str], int] = int) -> Any:
    """Read strict JSON.

    Args:
        data: The text, in UTF-8 if it is bytes.
        parse_int: Reads an integer; raises ValueError for one that cannot be.

    Raises:
        ValueError: If it is not JSON, nested too deeply, or holds a number that is not finite.
    """
    try:
        return json.loads(
            data, parse_constant=_refuse_constant, parse_float=_finite, parse_int=parse_int
        )
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


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
