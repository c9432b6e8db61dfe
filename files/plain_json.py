"""Which Python values survive a round trip through JSON unchanged."""

import math
from typing import Any


def require_plain(value: Any, where: str) -> None:
    """Refuse anything that JSON would lose or change, at the time of writing.

    numpy scalars, tuples, paths, configuration nodes and non-finite floats either fail to encode or
    come back as something else, which would be noticed only when a run is resumed. The types are
    compared exactly because numpy.float64 is a subclass of float.

    Args:
        value: The value to check, usually a dict.
        where: What to call it in the error message, such as "state".

    Raises:
        TypeError: Naming the key path of the first value that is not str, int, finite float, bool,
            None, or a list or dict (with str keys) of these.
    """
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}; JSON keys must be str")
            require_plain(item, f"{where}.{key}")
    elif kind is list:
        for index, item in enumerate(value):
            require_plain(item, f"{where}[{index}]")
    elif kind is float:
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}, which JSON cannot hold; use None")
    elif value is not None and kind not in (str, int, bool):
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}; only str, int, float, bool, "
            "None, list and dict can be saved"
        )
