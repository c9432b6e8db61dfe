"""The record of a run's metrics: one JSON object a line, flushed as it is written.

Policy for values that JSON cannot hold: NaN and infinities are written as null, and come back as
None. A metric that is not a number says so rather than stopping the run that reports it.
"""

import json
import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from files.atomic import write_text
from files.disk import one_line, write_failure
from files.errors import RunError, WriteFailed
from files.regular_file import read_regular_file
from files.strict_json import load_strict
from files.synced import fsync_folder

# Far more steps than anybody trains.
_MAX_BYTES = 64 << 30


class MetricsLog:
    """Append-only log; opens its file at the first record.

    A record is with the kernel when `append` returns, so it outlives a killed process; it is on
    the disk, so that it outlives a power failure too, after `sync`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record as one line.

        Args:
            record: Plain JSON values; non-finite floats are written as null.

        Raises:
            RunError: If the file is none of its own, or too large.
            WriteFailed: If the line cannot be written whole; the file then ends with the line
                before.
            TypeError: If a value is not JSON.
        """
        line = json.dumps(_null_non_finite(record), allow_nan=False).encode() + b"\n"
        descriptor = self._open()
        self._require_still_there(descriptor)
        size_bytes = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, line)
        except OSError as error:
            with suppress(OSError):  # on a disk that has become read-only, say
                os.ftruncate(descriptor, size_bytes)
            raise write_failure(self._path, error, len(line)) from error

    def sync(self) -> None:
        """Wait until all records are on the disk; call it before saving a checkpoint.

        Raises:
            WriteFailed: If the disk refuses, or the file is gone.
        """
        if self._descriptor is None:
            return
        self._require_still_there(self._descriptor)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_failure(self._path, error) from error

    def drop_after(self, step: int) -> None:
        """Forget what a resumed run is about to do again.

        Removes the records whose "step" is later than `step`, and a last line that a crash left
        incomplete, atomically. Records without a step are kept.

        Args:
            step: The step of the checkpoint that the run resumes from.

        Raises:
            RunError: If the file is damaged or cannot be rewritten.
        """
        self.close()
        if not self._path.is_symlink() and not self._path.exists():
            return
        data = _read(self._path)
        kept = [record for record in _records(data, self._path) if not _is_after(record, step)]
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept)
        if text.encode() != data:
            write_text(self._path, text)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        """Return the open file, its last line mended and its name on the disk."""
        if self._descriptor is None:
            # Through no link, and waiting for no reader of a pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                self._descriptor = os.open(self._path, flags, 0o666)
                _require_own(self._descriptor, self._path)
                _mend_last_line(self._descriptor)
                fsync_folder(self._path.parent)
            except RunError:
                self.close()
                raise
            except OSError as error:
                self.close()
                if self._path.is_symlink():
                    raise RunError(f"{self._path} is a symbolic link; remove it") from error
                raise write_failure(self._path, error) from error
        return self._descriptor

    def _require_still_there(self, descriptor: int) -> None:
        """Refuse to write to a file that was deleted: nobody would ever see the records."""
        if os.fstat(descriptor).st_nlink == 0:
            raise WriteFailed(
                f"{self._path} was deleted while the run was writing to it; rerun the same command "
                "to resume from the newest checkpoint, if the run's folder still has one"
            )


class NoMetrics(MetricsLog):
    """Takes what a log takes and writes nothing: for a process that another one writes for."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def append(self, record: dict[str, Any]) -> None:
        """Forget a record."""

    def drop_after(self, step: int) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all records.

    A last line without its newline that is not JSON is what a crash left of a record; it is
    ignored.

    Args:
        path: The metrics file.

    Raises:
        RunError: If the file cannot be read, is no regular file or too large, or naming the line
            that is not a strict JSON object.
    """
    return _records(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, _MAX_BYTES)
    except OSError as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error


def _records(data: bytes, path: Path) -> list[dict[str, Any]]:
    """Parse a whole file."""
    lines = data.split(b"\n")
    torn = lines.pop()  # empty after a final newline
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except ValueError as error:
            cause = one_line(error)
            raise RunError(
                f"{path} is damaged in line {number} ({cause}); correct or delete that line"
            ) from error
    with suppress(ValueError):
        records.append(_record(torn))
    return records


def _record(line: bytes) -> dict[str, Any]:
    """Parse one line.

    Raises:
        ValueError: If it is no strict JSON object.
    """
    record = load_strict(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _is_after(record: dict[str, Any], step: int) -> bool:
    """Return whether a record belongs to a later step."""
    recorded = record.get("step")
    return isinstance(recorded, int | float) and recorded > step


def _require_own(descriptor: int, path: Path) -> None:
    """Refuse to append to a pipe, or to what would be refused when it is read."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path} is not a regular file; remove it")
    if status.st_size > _MAX_BYTES:
        raise RunError(f"{path} holds {status.st_size} bytes, more than {_MAX_BYTES}; move it away")


def _mend_last_line(descriptor: int) -> None:
    """End the file with a complete line, so that the next record does not continue a torn one."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read()
    start = data.rfind(b"\n") + 1
    try:
        _record(data[start:])
    except ValueError:
        os.ftruncate(descriptor, start)
    else:
        _write_all(descriptor, b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a nearly full disk takes only some at the first call."""
    while data:
        data = data[os.write(descriptor, data) :]


def _null_non_finite(value: Any) -> Any:
    """Replace NaN and infinities by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _null_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_non_finite(item) for item in value]
    return value
