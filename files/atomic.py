"""Small files that are either the old ones or the new ones, whatever happens in between."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from files.disk import write_failure
from files.errors import RunError
from files.synced import fsync_folder


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` (UTF-8) so that a reader or a crash sees all of it or none.

    Raises:
        RunError: If the text cannot be encoded.
        WriteFailed: If the file cannot be written; the old one is then untouched.
    """
    # The process id keeps two writers apart; a leftover of a killed one is overwritten or harmless.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise RunError(f"cannot write {path}: {text[error.start]!a} is no letter") from error
    try:
        # Through no link that is there already, and waiting for no reader of a pipe.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # on a disk that has become read-only, say
            temporary.unlink()
        raise write_failure(path, error, len(data)) from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object, atomically.

    Raises:
        RunError: If the file cannot be written.
        TypeError: If `value` holds anything but plain, finite JSON values.
    """
    require_plain(value, path.name)
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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
