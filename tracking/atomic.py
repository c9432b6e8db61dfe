"""Small files that are either the old ones or the new ones, whatever happens in between."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from tracking.disk import one_line, write_failure
from tracking.errors import RunError
from tracking.plain_json import require_plain


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` (UTF-8) so that a reader or a crash sees all of it or none.

    Raises:
        RunError: If the file cannot be written; the old one is then untouched.
    """
    # The process id keeps two writers apart; a leftover of a killed one is overwritten or harmless.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    data = text.encode()
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_failure(path, error, len(data)) from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object, atomically.

    Raises:
        RunError: If the file cannot be written.
        TypeError: If `value` holds anything but plain, finite JSON values.
    """
    require_plain(value, path.name)
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: Naming the file, if it is missing, unreadable, empty, truncated, not strict JSON
            or not an object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error
    if not data.strip():
        raise RunError(f"{path} is empty")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def fsync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not offer it for folders; there is nothing more to do there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's JSON reader takes though JSON has no such values."""
    raise ValueError(f"{name} is not JSON")
