"""Training batches: windows of the token streams in a seeded order, addressed by sample index."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.errors import DataError
from data.shards.stream import TokenStream

# Samples in which each corpus of a mixture gets its share to the last one.
MIXTURE_BLOCK = 1024
_ROUNDS = 8


class Permutation:
    """A pseudorandom permutation of 0 .. size - 1.

    A Feistel network permutes the numbers of 2 w bits, whatever its round function; what falls
    beyond the range is permuted again until it does not. Memory does not grow with the size.

    Args:
        size: At least 1, at most 2^62.
        key: Whole numbers from 0; equal keys give equal permutations.

    Source:
        Luby and Rackoff 1988; cycle-walking: Black and Rogaway 2002, "Ciphers with arbitrary
        finite domains". The round function is splitmix64's (Steele et al. 2014).
    """

    def __init__(self, size: int, *key: int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size ({size}) must lie between 1 and 2^62")
        self._size = np.uint64(size)
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half_bits)
        self._mask = np.uint64(2**half_bits - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return where the permutation sends each index, [n] -> [n]."""
        values = np.asarray(indices).astype(np.uint64)
        if values.size and values.max() >= self._size:
            raise IndexError(f"index {values.max()} of a permutation of {self._size}")
        values = self._shuffled(values)
        # The domain is less than four times the range: a few rounds bring all inside.
        while (beyond := values >= self._size).any():
            values[beyond] = self._shuffled(values[beyond])
        return values.astype(np.int64)

    def _shuffled(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._half) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every bit of each value over all of them; overflow wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class StreamWindows:
    """Windows of one stream in a new permutation each epoch.

    Window i is tokens[i * context_length : i * context_length + context_length + 1]: its inputs
    are disjoint from every other window's, and its last target is the next window's first input.

    Args:
        stream: Tokens of a training split.
        context_length: Tokens per window.
        key: Of the permutations, which the epoch's number completes.

    Raises:
        DataError: If the stream is shorter than one window.
    """

    def __init__(self, stream: TokenStream, context_length: int, *key: int) -> None:
        self._stream = stream
        self._context_length = context_length
        self._key = key
        self._permutations: dict[int, Permutation] = {}
        self.num_windows = max(len(stream) - 1, 0) // context_length
        if self.num_windows < 1:
            raise DataError(
                f"the training split has {len(stream)} tokens, fewer than the "
                f"{context_length + 1} of one window (context of {context_length} and one target); "
                "use more text or a shorter context"
            )

    @property
    def tokens_per_epoch(self) -> int:
        """Targets that one epoch trains on."""
        return self.num_windows * self._context_length

    @property
    def dropped_tokens(self) -> int:
        """Targets at the end of the stream that fill no window and are never trained on."""
        return len(self._stream) - 1 - self.tokens_per_epoch

    def read(self, samples: npt.NDArray[np.int64], out: npt.NDArray[np.int64]) -> None:
        """Read the windows of samples [n], counted over all epochs, into out [n, context + 1]."""
        epochs, positions = np.divmod(samples, self.num_windows)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            windows = self._permutation(int(epoch))(positions[rows])
            for row, window in zip(rows, windows, strict=True):
                start = int(window) * self._context_length
                out[row] = self._stream.window(start, self._context_length + 1)

    def _permutation(self, epoch: int) -> Permutation:
        if epoch not in self._permutations:
            self._permutations = {epoch: Permutation(self.num_windows, *self._key, epoch)}
        return self._permutations[epoch]


class TrainingWindows:
    """Windows of one stream, or of several mixed by weights, in a seeded order.

    (seed, global sample index) alone says what is read, whatever was read before and by how many
    ranks. Of each MIXTURE_BLOCK samples every stream gets its share, in a permuted order; within
    a stream each epoch reads every window once.

    Args:
        streams: Tokens of training splits by name, with the share of each; shares need not add up
            to 1.
        context_length: Tokens per window.
        seed: Order of the windows; at least 0.

    Raises:
        DataError: If a stream is shorter than one window, or its share less than one sample of a
            block.
        ValueError: If context_length or seed is out of range.
    """

    def __init__(
        self, streams: Mapping[str, tuple[TokenStream, float]], context_length: int, seed: int
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length ({context_length}) must be at least 1")
        if seed < 0:
            raise ValueError(f"seed ({seed}) must be at least 0")
        self.context_length = context_length
        self.seed = seed
        self.names = list(streams)
        self.streams = [
            StreamWindows(stream, context_length, seed, number)
            for number, (stream, _) in enumerate(streams.values())
        ]
        # Samples [starts[k], starts[k + 1]) of a permuted block are stream k's.
        self._starts = np.concatenate(
            ([0], np.cumsum(_quotas([weight for _, weight in streams.values()])))
        )

    @property
    def tokens_dropped(self) -> int:
        """Tokens of all streams that fill no window, and are in no epoch trained on.

        With the trained ones they are all targets there are: every token but a stream's first.
        """
        return sum(stream.dropped_tokens for stream in self.streams)

    def describe(self, num_tokens: int) -> str:
        """Say how often training on so many tokens reads each stream."""
        quotas = np.diff(self._starts) / MIXTURE_BLOCK
        return "; ".join(
            f"{num_tokens * quota / stream.tokens_per_epoch:.2f} epochs of {name}'s "
            f"{stream.tokens_per_epoch:,} tokens ({stream.dropped_tokens} at the end of the "
            "stream fill no window)"
            for name, stream, quota in zip(self.names, self.streams, quotas, strict=True)
        )

    def batch(
        self, first_sample: int, num_samples: int, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Read consecutive samples of the global order.

        Args:
            first_sample: Global index of the first sample, from 0 over all epochs.
            num_samples: Number of samples b.
            device: Where the tensors go.

        Returns:
            Inputs and targets, each [b, context_length] int64; targets are inputs one token on.

        Raises:
            ValueError: If first_sample is negative or num_samples below 1.
        """
        if first_sample < 0 or num_samples < 1:
            raise ValueError(
                f"first_sample ({first_sample}) must be at least 0 and num_samples "
                f"({num_samples}) at least 1"
            )
        samples = np.arange(first_sample, first_sample + num_samples)
        tokens = np.empty((num_samples, self.context_length + 1), dtype=np.int64)
        if len(self.streams) == 1:
            self.streams[0].read(samples, tokens)
        else:
            self._read_mixed(samples, tokens)
        both = torch.from_numpy(tokens)
        if torch.device(device).type == "cuda":
            # Pinned, so that the copy does not wait for the device.
            both = both.pin_memory().to(device, non_blocking=True)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _read_mixed(self, samples: npt.NDArray[np.int64], out: npt.NDArray[np.int64]) -> None:
        blocks, places = np.divmod(samples, MIXTURE_BLOCK)
        for block in np.unique(blocks):
            in_block = blocks == block
            places[in_block] = Permutation(MIXTURE_BLOCK, self.seed, 0, int(block), 1)(
                places[in_block]
            )
        for number, stream in enumerate(self.streams):
            start, end = self._starts[number : number + 2]
            rows = np.flatnonzero((places >= start) & (places < end))
            own = blocks[rows] * (end - start) + places[rows] - start
            windows = np.empty((len(rows), out.shape[1]), dtype=np.int64)
            stream.read(own, windows)
            out[rows] = windows


def _quotas(weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Share out a block's samples by weights, the remainder to those that lose most."""
    shares = np.array(weights) / sum(weights) * MIXTURE_BLOCK
    quotas = np.floor(shares).astype(np.int64)
    for number in np.argsort(quotas - shares, kind="stable")[: MIXTURE_BLOCK - quotas.sum()]:
        quotas[number] += 1
    if quotas.min() < 1:
        raise DataError(
            f"data.weights: a corpus gets less than one of {MIXTURE_BLOCK} windows (weights "
            f"{', '.join(f'{w:g}' for w in weights)}); give it more or leave it out"
        )
    return quotas


def read_ahead(
    windows: TrainingWindows,
    first_samples: Iterable[int],
    num_samples: int,
    device: torch.device | str = "cpu",
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield `windows.batch` for each first sample, reading the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting: Future[tuple[Tensor, Tensor]] | None = None
        for first in first_samples:
            following = reader.submit(windows.batch, first, num_samples, device)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
