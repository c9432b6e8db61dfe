"""Token shards: writing a split's tokens to .npy files and reading them as one stream."""

import bisect
import errno
import hashlib
import os
import stat
import time
import weakref
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from data.disk import write_bytes_synced
from data.errors import DataError
from files.regular_file import sha256_of_file

Tokens = npt.NDArray[np.integer[Any]]

_MAX_OPEN = 64
# Tokens are of the first two, a journal's hashes of the third; in this machine's order of bytes.
_DTYPES = tuple(np.dtype(kind) for kind in (np.uint16, np.uint32, np.uint64))
# Longer than any header of one dimension.
_MAX_HEADER_BYTES = 4096
_CHUNK_BYTES = 2**22
# Longer than any file system's clock needs to tell two moments apart.
_TICK_NS = 3 * 10**9

# What tells one state of a file from another: device, inode, size, time of the last change.
Identity = tuple[int, int, int, int]
# Shards that this process has found to be what was written, with the hash and the vocabulary.
_verified: set[tuple[Identity, str, int]] = set()


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class ShardWriter:
    """Cut one split's tokens into files of `shard_tokens` tokens, the last one shorter.

    Args:
        folder: Where the files go.
        split: Beginning of their names.
        dtype: Of the tokens.
        shard_tokens: Tokens per file.
        shards: What an interrupted writer had written.
        tail: The tokens behind those shards that it had not written yet.

    Attributes:
        shards: File, number of tokens and sha256 of what is written.
        num_tokens: Tokens added so far.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        shards: Sequence[dict[str, Any]] = (),
        tail: Tokens | None = None,
    ) -> None:
        self.shards = list(shards)
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._pending: list[Tokens] = [] if tail is None else [tail]
        self._num_pending = 0 if tail is None else len(tail)
        self.num_tokens = sum(shard["tokens"] for shard in self.shards) + self._num_pending

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
            DataError: If the disk is full.
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
        DataError: If the disk is full.
    """
    # Not np.save: on a full disk ndarray.tofile raises an error without its errno.
    write_bytes_synced(path, _npy_header(tokens), tokens.view(np.uint8).data)
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
            DataError: If the file is not what was written, or holds something outside the
                vocabulary.
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
        # The header is a Python literal, and a bad one raises whatever the parser does.
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
    """Refuse an id outside the vocabulary.

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
            f"outside the vocabulary of {vocab_size}; delete {path.parent} and prepare again"
        )


class TokenStream:
    """The tokens of one split, in order, across its shards.

    Args:
        paths: Shard files in order.
        vocab_size: Every id must be below it; checked as windows are read.
        sha256: Hashes of the files. If given, a file that this process has not read in its
            present state is read once, and refused if its hash or an id is wrong.

    Raises:
        DataError: If a shard cannot be opened or is not what was written.
    """

    def __init__(
        self, paths: Sequence[Path], vocab_size: int, sha256: Sequence[str] | None = None
    ) -> None:
        self._paths = list(paths)
        self._sha256 = sha256
        self._vocab_size = vocab_size
        self._open: dict[int, Shard] = {}
        self._identities: list[Identity] = []
        # Shard k holds the tokens [starts[k], starts[k + 1]).
        self._starts = [0]
        for k, path in enumerate(self._paths):
            shard = Shard(path)
            if sha256 is not None:
                self._verify(shard, sha256[k], self._starts[k])
            self._identities.append(shard.identity)
            self._starts.append(self._starts[-1] + len(shard))

    def _verify(self, shard: Shard, sha256: str, position: int) -> None:
        known = shard.identity, sha256, self._vocab_size
        if known not in _verified:
            shard.verify(sha256, self._vocab_size, position)
            # A file system's clock ticks: another change in the same tick would look the same.
            if abs(time.time_ns() - shard.identity[3]) > _TICK_NS:
                _verified.add(known)

    def __len__(self) -> int:
        return self._starts[-1]

    def _shard(self, k: int) -> Shard:
        if k not in self._open:
            # A process may have few files open.
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]
            shard = Shard(self._paths[k])
            if shard.identity != self._identities[k]:
                if self._sha256 is None:
                    raise DataError(
                        f"shard {self._paths[k]} was changed while it was in use; restore it, or "
                        f"delete {self._paths[k].parent} and prepare again"
                    )
                # Some network file systems number their files anew.
                self._verify(shard, self._sha256[k], self._starts[k])
                self._identities[k] = shard.identity
            self._open[k] = shard
        return self._open[k]

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Read consecutive tokens.

        Args:
            start: Position of the first token.
            length: Number of tokens.

        Returns:
            [length] int64 token ids.

        Raises:
            IndexError: If the window does not lie inside the stream.
            DataError: If a shard holds an id outside the vocabulary, or was cut short or exchanged
                since the stream was opened.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"window [{start}, {start + length}) of a stream of {len(self)}")
        out = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            position = start + filled
            k = bisect.bisect_right(self._starts, position) - 1
            offset = position - self._starts[k]
            number = min(length - filled, self._starts[k + 1] - position)
            piece = out[filled : filled + number]
            piece[:] = self._shard(k).read(offset, number)
            require_in_vocabulary(piece, self._vocab_size, self._paths[k], position)
            filled += number
        return out
