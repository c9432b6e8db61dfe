"""Reading a small file that somebody else may have put there."""

import errno
import hashlib
import os
import stat
from pathlib import Path

_PIECE_BYTES = 1 << 20


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Read a whole file that must be one: no link out of its folder, no pipe, nothing endless.

    Args:
        path: The file; the folders above it may be links.
        max_bytes: More than any honest file of this kind holds.

    Raises:
        OSError: If it cannot be read, is no regular file or is too large; `strerror` says which.
    """
    try:
        # Opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(errno.ELOOP, "it is a symbolic link", path) from error
        raise
    try:
        _require_plain(os.fstat(descriptor), path, max_bytes)
        data = bytearray()
        while len(data) <= max_bytes and (piece := os.read(descriptor, _PIECE_BYTES)):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:  # it grew
        raise _refused(errno.EFBIG, f"it holds more than {max_bytes} bytes", path)
    return bytes(data)


def require_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Refuse what `read_regular_file` would, for a library that opens the file by its name.

    Args:
        path: The file; the folders above it may be links.
        max_bytes: More than any honest file of this kind holds; None for no limit.

    Raises:
        OSError: If it is missing, no regular file or too large; `strerror` says which.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _refused(errno.ELOOP, "it is a symbolic link", path)
    _require_plain(status, path, max_bytes)


def _require_plain(status: os.stat_result, path: Path, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refused(errno.EINVAL, "it is not a regular file", path)
    if max_bytes is not None and status.st_size > max_bytes:
        what = f"it holds {status.st_size} bytes, more than the {max_bytes} that are allowed"
        raise _refused(errno.EFBIG, what, path)


def _refused(number: int, what: str, path: Path) -> OSError:
    return OSError(number, what, str(path))


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a regular file's bytes.

    Raises:
        OSError: If it cannot be read or is a link, a pipe or the like.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
