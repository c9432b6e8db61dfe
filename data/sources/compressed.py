"""Compressed files as a stream of what is in them, to their end."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_CHUNK_BYTES = 2**17


def compression_of(path: Path) -> str | None:
    """Return the ending that says how a file is compressed; None if it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else None


class _Zstandard(io.RawIOBase):
    """Unpacked bytes of a Zstandard file: all its frames, and an error where one is cut short."""

    def __init__(self, path: Path) -> None:
        import zstandard

        super().__init__()
        self._file = path.open("rb")
        self._zstandard = zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_within = False
        self._packed = self._unpacked = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            if self._frame.eof:
                self._packed, self._is_within = self._frame.unused_data, False
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            packed, self._packed = self._packed or self._file.read(_CHUNK_BYTES), b""
            if not packed:
                if self._is_within:
                    raise EOFError("the compressed data ends too early")
                return 0
            self._is_within = True
            self._unpacked = self._frame.decompress(packed)
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacking it where its name says that it is compressed.

    Raises:
        OSError: If it cannot be opened.
    """
    compression = compression_of(path)
    if compression == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if compression == ".bz2":
        return bz2.open(path, "rb")
    if compression == ".xz":
        return lzma.open(path, "rb")
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(path), 8 * _CHUNK_BYTES)
    return path.open("rb")
