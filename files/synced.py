"""Writing, and waiting until the disk has it."""

import errno
import os
from pathlib import Path


def write_synced(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file and return once it is on the disk.

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is durable only after this.

    Raises:
        OSError: If that fails, naming the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not offer it for folders; there is nothing more to do there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(descriptor)
