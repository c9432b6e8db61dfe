"""What a layer declares that it keeps. Allocation, closed forms and reports follow from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from modeling.kv_cache.storage import bytes_per_token

CacheEntries = Mapping[str, tuple[int, int]]
"""What one token leaves in one layer: entry name -> (heads, width)."""


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What one layer reads of the tokens before, and whether it stores it itself.

    Args:
        per_token: Entries that grow with the tokens.
        fixed: State whose size does not depend on the tokens: name -> shape of a sequence's;
            always float32.
        window: At most so many of the newest tokens are held; None for all.
        source: Index of the earlier layer whose state this one reads, and which alone stores it;
            None for a state of its own.
        needs_positions: Whether the positions of the held tokens are asked for when they are read.
    """

    per_token: CacheEntries = field(default_factory=dict)
    fixed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    window: int | None = None
    source: int | None = None
    needs_positions: bool = False

    def held(self, num_tokens: int) -> int:
        """Return how many of `num_tokens` tokens are held."""
        return num_tokens if self.window is None else min(num_tokens, self.window)

    @property
    def elements_per_token(self) -> int:
        """Elements that a held token takes."""
        return sum(heads * width for heads, width in self.per_token.values())

    def bytes_read(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Return the bytes of a sequence that a step behind `num_tokens` tokens reads.

        Args:
            num_tokens: Tokens seen, the step's own among them.
            dtype: Of the entries that grow.
        """
        fixed = sum(math.prod(shape) for shape in self.fixed.values())
        growing = self.held(num_tokens) * bytes_per_token(self.per_token, dtype)
        return growing + fixed * torch.float32.itemsize

    def bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Return the bytes that a sequence of `num_tokens` tokens takes in this layer's cache."""
        return 0 if self.source is not None else self.bytes_read(num_tokens, dtype)
