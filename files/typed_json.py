"""Reading a JSON file whose shape is known: a type states the shape, msgspec checks it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from files.disk import one_line
from files.errors import RunError
from files.regular_file import read_regular_file
from files.strict_json import load_strict

T = TypeVar("T")
# Far more than the small files of a run hold.
MAX_BYTES = 16 << 20
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_MAX_KEY_LENGTH = 60


def read_typed(path: Path, kind: type[T], max_bytes: int = MAX_BYTES) -> T:
    """Read a JSON file of a known shape.

    Args:
        path: The file.
        kind: The shape: a frozen dataclass, a msgspec.Struct (with `forbid_unknown_fields=True`
            where a key too many is damage) or any type that these can hold, with
            `Annotated[int, msgspec.Meta(ge=0)]` and the like for ranges.
        max_bytes: More than any honest file of this kind holds.

    Raises:
        RunError: In one line that names the file, and the place in it with what was expected there;
            if it is missing, unreadable, no regular file, too large, empty, no strict JSON (NaN, a
            key twice, nested too deeply) or of another shape.
    """
    return typed(_read(path, max_bytes), kind, path)


def typed(value: Any, kind: type[T], path: Path) -> T:
    """Check JSON values that were read already, such as a part of a file.

    Args:
        value: Plain JSON values.
        kind: Their shape, as for `read_typed`. No text is taken for a number, nor a bool for an
            int.
        path: The file that they are from, for the message.

    Raises:
        RunError: Naming the file, the place in it and what was expected there.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise RunError(f"{path} is damaged: {_explained(value, kind, str(error))}") from error
    except UnicodeEncodeError as error:  # where msgspec looks for the name of a field
        raise RunError(f"{path} is damaged: it holds the key {error.object[:60]!a}") from error


def _read(path: Path, max_bytes: int) -> Any:
    """Read strict JSON of any shape from a regular file."""
    try:
        data = read_regular_file(path, max_bytes)
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error
    if not data.strip():
        raise RunError(f"{path} is empty")
    try:
        return load_strict(data)
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({one_line(error)})") from error


def _explained(value: Any, kind: Any, message: str) -> str:
    """Write msgspec's message as "expected int at $.splits.train.tokens"."""
    what, _, place = message.partition(" - at `")
    what, place = what.replace("`", ""), place.replace("`", "") or "$"
    if "[...]" in place:
        place = _with_keys(value, kind, message, place)
    return f"{what[:1].lower()}{what[1:]} at {place}"


def _with_keys(value: Any, kind: Any, message: str, place: str) -> str:
    """Name the keys of mappings, for which msgspec writes [...]."""

    def fails() -> bool:
        try:
            msgspec.convert(value, kind, strict=True)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            return str(error) == message
        return False

    try:
        node = value = copy.deepcopy(value)
    except RecursionError:
        return place
    found = "$"
    for name, index in _STEP.findall(place):
        if name:
            key: Any = name
        elif index != "...":
            key = int(index)
        elif type(node) is dict and (damaged := _damaged_key(node, fails)) is not None:
            key = damaged
        else:
            return place
        node = node[key]
        is_word = isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_-]+", key)
        found += f".{key[:_MAX_KEY_LENGTH]}" if is_word else f"[{_short(key)}]"
    return found


def _damaged_key(node: dict[str, Any], fails: Callable[[], bool]) -> str | None:
    """Return a key that alone makes the conversion fail, and leave no other in the mapping."""
    items, keys = dict(node), list(node)
    while len(keys) > 1:
        half = keys[: len(keys) // 2]
        node.clear()
        node.update({key: items[key] for key in half})
        keys = half if fails() else keys[len(half) :]
    node.clear()
    node.update({key: items[key] for key in keys})
    return keys[0] if keys and fails() else None


def _short(key: str | int) -> str:
    return ascii(key[:_MAX_KEY_LENGTH] if isinstance(key, str) else key)
