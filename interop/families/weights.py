"""How a class of transformers stores kvlab's weights: a table that is read in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightTable:
    """Names and orders of a class's weights.

    Args:
        names: Parts of kvlab's names, and what the class calls them.
        orders: By module of an attention: the dimension whose entries stand in another order, and
            where each of the class's entries comes from.
        prefix: What all names begin with but the output projection's.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    prefix: str = "model."

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the class's state dict."""
        found = {}
        for ours, tensor in weights.items():
            name = ours if ours.startswith("lm_head.") else f"{self.prefix}{ours}"
            for part, theirs in self.names.items():
                name = name.replace(part, theirs)
            found[name] = self._ordered(ours, tensor, is_back=False)
        return found

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return kvlab's state dict, from names that were checked."""
        found = {}
        for theirs, tensor in weights.items():
            name = theirs.removeprefix(self.prefix)
            for part, other in reversed([*self.names.items()]):
                name = name.replace(other, part)
            found[name] = self._ordered(name, tensor, is_back=True)
        return found

    def _ordered(self, name: str, tensor: Tensor, is_back: bool) -> Tensor:
        module = name.rpartition(".self_attn.")[2].partition(".")[0]
        if module not in self.orders:
            return tensor
        dim, order = self.orders[module]
        return tensor.index_select(dim, (order.argsort() if is_back else order).to(tensor.device))


def by_head(heads: int, order: Tensor) -> Tensor:
    """Return the order of the rows of all heads, from that of the rows of one."""
    return (torch.arange(heads).unsqueeze(1) * len(order) + order).flatten()
