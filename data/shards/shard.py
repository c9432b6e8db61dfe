"""Token shards: a split's tokens in .npy files, written once and read by position."""

import errno
import hashlib
import os
import stat
import weakref
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.tokenizing.tokenizer import Tokens
from files.regular_file import sha256_of_file
from files.synced import write_synced

# Tokens are of the first two, a journal's hashes of the third; in this machine's order of bytes.
_DTYPES = tuple(np.dtype(kind) for kind in (np.uint16, np.uint32, np.uint64))
# Longer than any header of one dimension.
_MAX_HEADER_BYTES = 4096
_CHUNK_BYTES = 2**22

# What tells one state of a file from another: device, inode, size, time of the last change.
Identity = tuple[int, int, int, int]


class ShardWriter:
    """Cut one split's tokens into files of `shard_tokens` tokens, the last one shorter.

    Args:
        folder: Where the files go.
        split: Beginning of their names.
        dtype: Of the tokens.
        shard_tokens: Tokens per file.
        begun: The `state` of an interrupted writer.
        tail: The tokens behind its shards that it had not written yet.

    Attributes:
        shards: File, number of tokens and sha256 of what is written.
        counts: Documents, bytes and words added so far.
        num_tokens: Tokens added so far.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        begun: Mapping[str, Any] = MappingProxyType({}),
        tail: Tokens | None = None,
    ) -> None:
        self.shards: list[dict[str, Any]] = list(begun.get("shards", ()))
        self.counts = Counter(begun.get("counts", {}))
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._pending: list[Tokens] = [] if tail is None else [tail]
        self._num_pending = 0 if tail is None else len(tail)
        self.num_tokens = sum(shard["tokens"] for shard in self.shards) + self._num_pending

    @property
    def state(self) -> dict[str, Any]:
        """What another writer needs, with the tail, to continue."""
        return {"counts": self.counts, "shards": self.shards}

    @property
    def tail(self) -> Tokens:
        """The tokens that are in no shard yet."""
        if len(self._pending) != 1:
            self._pending = [np.concatenate([np.empty(0, self._dtype), *self._pending])]
        return self._pending[0]

    def add(self, tokens: Tokens) -> bool:
        """Append tokens, and write the shards that they fill.

        Returns:
            Whether a shard was written.

        Raises:
            OSError: If one cannot be written.
        """
        self._pending.append(tokens)
        self._num_pending += len(tokens)
        self.num_tokens += len(tokens)
        if self._num_pending < self._shard_tokens:
            return False
        tokens = self.tail
        while len(tokens) >= self._shard_tokens:
            self._write_shard(tokens[: self._shard_tokens])
            tokens = tokens[self._shard_tokens :]
        # A copy, so that the memory of what is written is free.
        self._pending, self._num_pending = [tokens.copy()], len(tokens)
        return True

    def finish(self) -> None:
        """Write what is left as the last, shorter shard."""
        if self._num_pending:
            self._write_shard(self.tail)
            self._pending, self._num_pending = [], 0

    def _write_shard(self, tokens: Tokens) -> None:
        path = self._folder / f"{self._split}-{len(self.shards):05d}.npy"
        self.shards.append({"file": path.name, **write_array(path, tokens)})


def write_array(path: Path, tokens: Tokens) -> dict[str, Any]:
    """Write a .npy file; return its number of tokens and its sha256.

    Raises:
        OSError: If it cannot be written.
    """
    # Not np.save: on a full disk ndarray.tofile raises an error without its errno.
    write_synced(path, _npy_header(tokens), tokens.view(np.uint8).data)
    return {"tokens": len(tokens), "sha256": sha256_of_file(path)}


def _npy_header(tokens: Tokens) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(tokens))
    return header.getvalue()


class Shard:
    """A .npy file of whole numbers, read by position.

    Not mapped to memory: a file that is cut short under a map ends the process without a word.

    Args:
        path: A regular file.

    Attributes:
        dtype: Of the numbers.
        identity: Which state of which file this is.

    Raises:
        DataError: If the file is missing, a link, a pipe or the like, or no array of the size it
            states.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Opening a pipe would wait for a writer.
            self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise DataError(f"shard {path} is missing") from error
        except OSError as error:
            link = error.errno == errno.ELOOP
            self._refuse("it is a symbolic link" if link else error.strerror or error, error)
        weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            self._refuse("it is not a regular file")
        self.identity: Identity = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
        )
        self.dtype, self._length, self._begin = self._read_header(status.st_size)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, length: int) -> Tokens:
        """Read numbers [start, start + length), which must lie inside.

        Raises:
            DataError: If the file cannot be read or has become shorter.
        """
        size = self.dtype.itemsize
        data = self._bytes(self._begin + start * size, length * size)
        return np.frombuffer(data, self.dtype)

    def verify(self, sha256: str, vocab_size: int, position: int) -> None:
        """Read everything once, in bounded memory.

        Args:
            sha256: Of the whole file.
            vocab_size: Every number must be below it.
            position: Of the first token in its split, for the message.

        Raises:
            DataError: If the file is not what was written, or holds an id that is not in
                the vocabulary.
        """
        digest = hashlib.sha256(self._bytes(0, self._begin))
        at_once = _CHUNK_BYTES // self.dtype.itemsize
        for start in range(0, self._length, at_once):
            tokens = self.read(start, min(at_once, self._length - start))
            require_in_vocabulary(tokens, vocab_size, self._path, position + start)
            digest.update(tokens.view(np.uint8).data)
        if digest.hexdigest() != sha256:
            raise DataError(f"{self._path} is not what was written (sha256 differs)")

    def _read_header(self, size: int) -> tuple[np.dtype[Any], int, int]:
        header = BytesIO(self._bytes(0, min(size, _MAX_HEADER_BYTES)))
        try:
            version = np.lib.format.read_magic(header)
            if version != (1, 0):
                raise ValueError(f"format {version} instead of (1, 0)")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(
                header, _MAX_HEADER_BYTES
            )
        # The header is a Python literal, and a bad one raises anything.
        except Exception as error:
            self._refuse(f"its header is damaged: {error}", error)
        if dtype not in _DTYPES or is_fortran or len(shape) != 1:
            self._refuse(f"it holds {shape} {dtype} instead of a row of whole numbers")
        begin = header.tell()
        if shape[0] < 0 or size != begin + shape[0] * dtype.itemsize:
            self._refuse(f"it has {size} bytes, which {shape[0]} numbers of {dtype} do not fill")
        return dtype, shape[0], begin

    def _bytes(self, start: int, length: int) -> bytes:
        """Read exactly so many bytes."""
        pieces: list[bytes] = []
        while length:
            try:
                piece = os.pread(self._file, length, start)
            except OSError as error:
                self._refuse(f"at byte {start}: {error.strerror}", error)
            if not piece:
                self._refuse(f"it ends at byte {start}: it was cut short while it was in use")
            if len(piece) == length and not pieces:
                return piece
            pieces.append(piece)
            start += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _refuse(self, what: object, cause: Exception | None = None) -> NoReturn:
        raise DataError(f"shard {self._path} cannot be read ({what})") from cause


def require_in_vocabulary(
    tokens: npt.NDArray[np.integer[Any]], vocab_size: int, path: Path, position: int
) -> None:
    """Refuse an id that is not in the vocabulary.

    Args:
        tokens: Ids.
        vocab_size: They must be below it.
        path: Where they are from.
        position: Of the first one in its split.

    Raises:
        DataError: Naming the first such id and its position.
    """
    if len(tokens) and tokens.max() >= vocab_size:
        first = int(np.argmax(tokens >= vocab_size))
        raise DataError(
            f"{path} holds token {tokens[first]} at position {position + first} of its split, "
            f"but the vocabulary has {vocab_size} ids; delete {path.parent} and prepare again"
        )
