"""Reading JSON and nothing else: Python's reader takes more, and may run out of stack."""

import json
import math
from collections.abc import Callable
from typing import Any


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
