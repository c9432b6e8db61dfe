"""Writing below data.prepared_dir, and saying what kept it from being written."""

from pathlib import Path

from data.errors import DataError
from files.disk import is_out_of_space
from files.synced import write_synced


def write_bytes_synced(path: Path, *chunks: bytes | memoryview) -> None:
    """Write `chunks` to `path` and return once they are on the disk.

    Raises:
        DataError: If the disk, a quota or the file-size limit leaves no room, or the folder may
            not be written to.
    """
    try:
        write_synced(path, *chunks)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """Say what kept something from being written below data.prepared_dir.

    Args:
        path: What was to be written, if the error names nothing.
        error: Of the operating system.
    """
    where, reason = error.filename or path, error.strerror or error
    if is_out_of_space(error):
        return DataError(
            f"no room to write {where} ({reason}); free space or set data.prepared_dir to another "
            "disk"
        )
    return DataError(
        f"cannot write {where} ({reason}); see to the folder, or set data.prepared_dir to another"
    )
