"""Reading and writing files so that what is on disk is whole and known by its hash."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data.errors import DataError
from files.regular_file import read_regular_file, require_regular_file
from files.strict_json import load_strict

# Disk full, quota reached, file-size limit reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HASH = "content_sha256"


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a regular file's bytes.

    Raises:
        OSError: If it cannot be read or is a link, a pipe or the like.
    """
    require_regular_file(path)
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


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Add a hash of the content itself, which tells damage (though not a forgery).

    Args:
        content: JSON values.
    """
    return content | {_HASH: _hash_of(content)}


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object from a regular file.

    Args:
        path: The file.
        max_bytes: More than any honest file of this kind holds.

    Raises:
        OSError: If it cannot be read, is a link, a pipe or the like, or too large.
        ValueError: If it holds something else, or numbers that are none.
    """
    content = load_strict(read_regular_file(path, max_bytes))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return what was `sealed`.

    Raises:
        ValueError: If the content is not what was sealed.
    """
    content = dict(content)
    found = content.pop(_HASH, None)
    try:
        expected = _hash_of(content)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if found != expected:
        raise ValueError(f"its content does not have the {_HASH} that it states")
    return content


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
