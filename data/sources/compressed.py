"""Compressed files as a stream of what is in them, to their end."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any, cast


def _open_zstandard(path: Path) -> Any:
    import pyarrow

    # All frames of the file; an error where one is cut short.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_OPENERS: dict[str, Any] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
COMPRESSED = tuple(_OPENERS)


def compression_of(path: Path) -> str | None:
    """Return the ending that says how a file is compressed; None if it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacking it where its name says that it is compressed.

    Raises:
        OSError: If it cannot be opened.
    """
    compression = compression_of(path)
    return cast("IO[bytes]", _OPENERS[compression](path)) if compression else path.open("rb")
