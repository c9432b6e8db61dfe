"""A run's folder held by one process; the kernel frees it however the process ends."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from files.atomic import write_json
from files.disk import one_line, write_failure
from files.errors import RunError
from files.regular_file import require_regular_file
from files.typed_json import read_typed
from guards.printable import printable

# What a killed process leaves of `write_text`.
_TEMPORARY = re.compile(r"\..+\.tmp-[0-9]+")


class _Owner(msgspec.Struct):
    """The process that holds a lock."""

    pid: int
    host: str
    since: str


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, and remove what a killed process left in the middle of writing a small file.

    Raises:
        RunError: At once, if another process (or this one) holds it, naming process and host.
    """
    lock_path, owner_path = folder / ".lock", folder / ".lock-owner.json"
    lock = FileLock(lock_path)
    try:
        with suppress(FileNotFoundError):
            require_regular_file(lock_path)
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"{folder} is in use by {owner_in(owner_path)}; wait for it, stop it, or set another "
            "run_name"
        ) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise write_failure(lock_path, error) from error
        raise RunError(
            f"cannot lock {folder}: {one_line(error)}; put the runs folder on a file system that "
            "supports locks and that you may write to"
        ) from error
    try:
        with suppress(OSError):  # it only costs space
            for entry in sorted(folder.iterdir()):
                if _TEMPORARY.fullmatch(entry.name):
                    entry.unlink()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_json(owner_path, owner)
        yield
    finally:
        # What ends a run, a disk that has become read-only say, must not be hidden by this.
        with suppress(OSError):
            owner_path.unlink()
        with suppress(OSError):
            lock.release()


def owner_in(path: Path) -> str:
    """Say who holds the lock, as far as the note of it can be read."""
    try:
        owner = read_typed(path, _Owner)
    except RunError:  # the holder is just starting or ending
        return "another process"
    return printable(f"process {owner.pid} on {owner.host[:100]} since {owner.since[:100]}")
