"""Training batches: windows of the token stream in a seeded order, addressed by sample index."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.errors import DataError
from data.shards import TokenStream


class TrainingWindows:
    """Windows of a stream in a new permutation each epoch.

    Window i is tokens[i * context_length : i * context_length + context_length + 1]: its inputs
    are disjoint from every other window's, and its last target is the next window's first input.
    Global sample j lies in epoch j // num_windows, at position j % num_windows of a permutation
    that (seed, epoch) determines. So (seed, j) alone says what is read, whatever was read before
    and by how many ranks.

    Args:
        stream: Tokens of the training split.
        context_length: Tokens per window.
        seed: Order of the windows; at least 0.

    Raises:
        DataError: If the stream is shorter than one window.
        ValueError: If context_length or seed is out of range.
    """

    def __init__(self, stream: TokenStream, context_length: int, seed: int) -> None:
        if context_length < 1:
            raise ValueError(f"context_length ({context_length}) must be at least 1")
        if seed < 0:
            raise ValueError(f"seed ({seed}) must be at least 0")
        self.context_length = context_length
        self.seed = seed
        self.num_windows = max(len(stream) - 1, 0) // context_length
        if self.num_windows < 1:
            raise DataError(
                f"the training split has {len(stream)} tokens, fewer than the "
                f"{context_length + 1} of one window (context of {context_length} and one target); "
                "use more text or a shorter context"
            )
        self._stream = stream
        self._order_epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets that one epoch trains on."""
        return self.num_windows * self.context_length

    @property
    def dropped_tokens(self) -> int:
        """Targets at the end of the stream that fill no window and are never trained on."""
        return len(self._stream) - 1 - self.tokens_per_epoch

    def _window_of(self, sample: int) -> int:
        epoch, position = divmod(sample, self.num_windows)
        if epoch != self._order_epoch:
            generator = np.random.Generator(np.random.Philox([self.seed, epoch]))
            self._order = generator.permutation(self.num_windows)
            self._order_epoch = epoch
        return int(self._order[position])

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
        context = self.context_length
        tokens = np.empty((num_samples, context + 1), dtype=np.int64)
        for row in range(num_samples):
            start = self._window_of(first_sample + row) * context
            tokens[row] = self._stream.window(start, context + 1)
        both = torch.from_numpy(tokens).to(device)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()
