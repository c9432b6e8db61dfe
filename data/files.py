"""Writing below data.prepared_dir, and saying what kept it from being written."""

import errno
import os
from pathlib import Path

from data.errors import DataError

# Disk full, quota reached, file-size limit reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """Say what kept something from being written below data.prepared_dir.

    Args:
        path: What was to be written, if the error names nothing.
        error: Of the operating system.
    """
    where, reason = error.filename or path, error.strerror or error
    if error.errno in _FULL:
        return DataError(
            f"no room to write {where} ({reason}); free space or set data.prepared_dir to another "
            "disk"
        )
    return DataError(
        f"cannot write {where} ({reason}); see to the folder, or set data.prepared_dir to another"
    )


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that a rename survives a power cut.

    Raises:
        OSError: If that fails, naming the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder, and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(handle)
