"""Token shards: writing a split's tokens to .npy files and reading them as one stream."""

import bisect
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.files import sha256_of_file, write_bytes_synced

Tokens = npt.NDArray[np.integer[Any]]

_MAX_MAPPED = 64


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


def open_shard(path: Path) -> Tokens:
    """Memory-map one shard.

    Raises:
        DataError: If the file is missing or is no array of the size it states.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"shard {path} is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"shard {path} cannot be read ({error})") from error


class TokenStream:
    """The tokens of one split, in order, across its memory-mapped shards.

    Args:
        paths: Shard files in order.
        vocab_size: Every id must be below it; checked as windows are read.

    Raises:
        DataError: If a shard cannot be opened.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int) -> None:
        self._paths = list(paths)
        self._vocab_size = vocab_size
        self._mapped: dict[int, Tokens] = {}
        # Shard k holds the tokens [starts[k], starts[k + 1]).
        self._starts = [0]
        for path in self._paths:
            self._starts.append(self._starts[-1] + len(open_shard(path)))

    def __len__(self) -> int:
        return self._starts[-1]

    def _shard(self, k: int) -> Tokens:
        if k not in self._mapped:
            # Each map holds a file open, of which a process may have few.
            if len(self._mapped) >= _MAX_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[k] = open_shard(self._paths[k])
        return self._mapped[k]

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Read consecutive tokens.

        Args:
            start: Position of the first token.
            length: Number of tokens.

        Returns:
            [length] int64 token ids.

        Raises:
            IndexError: If the window does not lie inside the stream.
            DataError: If a shard holds an id outside the vocabulary.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"window [{start}, {start + length}) of a stream of {len(self)}")
        out = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            position = start + filled
            k = bisect.bisect_right(self._starts, position) - 1
            offset = position - self._starts[k]
            piece = self._shard(k)[offset : offset + length - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
        if length and out.max() >= self._vocab_size:
            at = start + int(np.argmax(out >= self._vocab_size))
            path = self._paths[bisect.bisect_right(self._starts, at) - 1]
            raise DataError(
                f"{path} holds token {out[at - start]} at position {at} of its split, outside the "
                f"vocabulary of {self._vocab_size}; delete {path.parent} and prepare again"
            )
        return out
