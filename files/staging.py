"""Folders that appear whole: filled under a hidden name next to their place, then moved there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from files.disk import write_failure


@contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder next to where its content belongs; what is not moved away is removed.

    What processes left there that were killed is removed, too.

    Args:
        final: The place; folders above it are made.

    Raises:
        WriteFailed: If there can be no such folder.
    """
    prefix = f".{final.name}.tmp-"
    temporary = final.with_name(f"{prefix}{os.getpid()}")
    try:
        try:
            _remove_leftovers(final.parent, prefix)
            temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(final, error) from error
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for path in parent.iterdir() if parent.is_dir() else ():
        number = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    """Return whether another process with this number runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
