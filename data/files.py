"""Reading and writing files so that what is on disk is whole and known by its hash."""

import errno
import hashlib
import os
from pathlib import Path

from data.errors import DataError

# Disk full, quota reached, file-size limit reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes_synced(path: Path, *chunks: bytes | memoryview) -> None:
    """Write `chunks` to `path` and return once they are on the disk.

    Raises:
        DataError: If the disk, a quota or the file-size limit leaves no room, or the folder may
            not be written to.
    """
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"no room to write {path} ({error.strerror}); free space or set "
                "data.prepared_dir to another disk"
            ) from error
        raise DataError(f"cannot write {path} ({error.strerror}); see to the folder") from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder, and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
