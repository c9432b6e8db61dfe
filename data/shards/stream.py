"""The shards of a split as one stream of tokens, each known to be what was written."""

import bisect
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.shards.shard import Identity, Shard, require_in_vocabulary

_MAX_OPEN = 64
# Longer than a tick of any file system's clock.
_TICK_NS = 3 * 10**9

# Shards that this process has found to be what was written, with the hash and the vocabulary.
_verified: set[tuple[Identity, str, int]] = set()


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
                # Some network file systems renumber their files.
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
            DataError: If a shard holds an id that is not in the vocabulary, or was cut short or
                exchanged since the stream was opened.
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
