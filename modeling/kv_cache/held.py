"""The tokens that the queries of one pass may see."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Held:
    """Views of what is stored, or, where there is no cache, what was computed in this pass.

    Args:
        entries: Name -> [b, heads, n, width], as stored.
        scales: Name -> [b, heads, n, 1], of int8 entries.
        first: Index in the sequence of the oldest token held.
        oldest_slot: Where that token is among the n: tokens follow it in order, and those that
            come after the last slot continue at the first.
        is_cached: Whether they come out of a cache.
        positions: [n] or [b, n], where the layer's state needs them.
    """

    entries: Mapping[str, Tensor]
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    first: int = 0
    oldest_slot: int = 0
    is_cached: bool = False
    positions: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """n, the tokens held."""
        return next(iter(self.entries.values())).shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of what is stored."""
        return next(iter(self.entries.values())).dtype

    def read(self, name: str, dtype: torch.dtype, start: int = 0, end: int | None = None) -> Tensor:
        """Return tokens [start, end) of an entry, [b, heads, end - start, width].

        Args:
            name: Of the entry.
            dtype: What is computed with; a view if it is what is stored, else a copy.
            start: First token.
            end: One past the last token; all that are held if not given.
        """
        stored = _part(self.entries[name], start, end)
        if name not in self.scales:
            return stored if stored.dtype == dtype else stored.to(dtype)
        return stored.to(dtype).mul_(_part(self.scales[name], start, end))

    def columns(self, by_token: Tensor) -> Tensor:
        """Return the held tokens' part of [..., t], a value for each token seen."""
        n = self.num_tokens
        if self.oldest_slot:
            return by_token[..., self.indices(by_token.device)]
        if self.first == 0 and by_token.shape[-1] == n:
            return by_token
        return by_token[..., self.first : self.first + n]

    def indices(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the index in the sequence of each held token, [n] int64."""
        in_order = torch.arange(self.first, self.first + self.num_tokens, device=device)
        return in_order.roll(self.oldest_slot) if self.oldest_slot else in_order


def _part(stored: Tensor, start: int, end: int | None) -> Tensor:
    end = stored.shape[2] if end is None else end
    whole = start == 0 and end == stored.shape[2]
    return stored if whole else stored.narrow(2, start, end - start)
