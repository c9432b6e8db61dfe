"""Disk space: what is free, and how a full disk differs from other write errors."""

import errno
import re
import shutil
from pathlib import Path

from files.errors import WriteFailed
from files.sizes import in_units

_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
# safetensors reports I/O errors as text only: "... File too large (os error 27)".
_OS_ERROR_IN_TEXT = re.compile(r"\(os error (\d+)\)")


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write at a path, which need not be there yet."""
    above = (path, *path.absolute().parents)
    return shutil.disk_usage(next(folder for folder in above if folder.is_dir())).free


def require_free_bytes(folder: Path, needed_bytes: int) -> None:
    """Refuse to start a write that cannot fit.

    Raises:
        WriteFailed: If fewer than `needed_bytes` are free below `folder`.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise WriteFailed(
            f"not enough disk space in {folder}: {in_units(needed_bytes)} needed, "
            f"{in_units(free)} free; free some space or move the runs folder to another disk"
        )


def write_failure(path: Path, cause: BaseException, needed_bytes: int | None = None) -> WriteFailed:
    """Turn the failure of a write into one line that names the path and, if known, the sizes.

    Args:
        path: What was being written.
        cause: The OSError, or the error in whose text a library hid one.
        needed_bytes: Size of what was being written, where known.
    """
    if isinstance(cause, FileNotFoundError) and not path.parent.is_dir():
        return WriteFailed(
            f"cannot write {path}: the folder {path.parent} is gone; put it back, or run the "
            "command again"
        )
    if not is_out_of_space(cause):
        return WriteFailed(
            f"cannot write {path}: {one_line(cause)}; check the disk and permissions"
        )
    sizes = f"{in_units(free_bytes(path))} free"
    if needed_bytes is not None:
        sizes = f"{in_units(needed_bytes)} needed, {sizes}"
    return WriteFailed(
        f"cannot write {path}: {one_line(cause)} ({sizes}); free some space, or raise the quota "
        "or file size limit"
    )


def is_out_of_space(cause: BaseException) -> bool:
    """Return whether a disk, a quota or a file size limit is used up."""
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno in _OUT_OF_SPACE
    found = _OS_ERROR_IN_TEXT.search(str(cause))
    return found is not None and int(found.group(1)) in _OUT_OF_SPACE


def one_line(error: BaseException) -> str:
    """Return the error's text, or its type where it has none, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
