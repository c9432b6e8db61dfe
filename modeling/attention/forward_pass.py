"""What the layers of one forward pass share: padding, documents, and keys that others read."""

from collections.abc import Collection

from torch import Tensor

from modeling.kv_cache import Held


class ForwardPass:
    """What the queries of a pass may see, apart from causality and windows, and who holds it.

    Args:
        attention_mask: Bool, [b, t], True where a token is real, or [b, s, t], True where a query
            may see a key; t counts all tokens seen, held or not. None: all.
        document_start: [b, s] int64, the index in the sequence of the first token of each query's
            document, before which it sees nothing. None: documents are not kept apart.
        read_layers: Indices of the layers whose keys and values later layers read.
    """

    def __init__(
        self,
        attention_mask: Tensor | None = None,
        document_start: Tensor | None = None,
        read_layers: Collection[int] = (),
    ) -> None:
        self.attention_mask = attention_mask
        self.document_start = document_start
        self._read_layers = read_layers
        self._held_by: dict[int, Held] = {}
        self._mask_of_all: Tensor | None = None

    def keep(self, layer_idx: int, held: Held) -> None:
        """Remember what a layer holds, if later layers read it."""
        if layer_idx in self._read_layers:
            self._held_by[layer_idx] = held

    def held_by(self, layer_idx: int) -> Held:
        """Return what an earlier layer holds in this pass.

        Raises:
            ValueError: If it has not been computed.
        """
        if layer_idx not in self._held_by:
            raise ValueError(
                f"the keys and values of layer {layer_idx} are read, and it has computed none in "
                "this pass; a layer that reads another's works within a model"
            )
        return self._held_by[layer_idx]

    def mask(self, held: Held) -> Tensor | None:
        """Return which held tokens may be seen, bool [b, n] or [b, s, n]; None if all."""
        if self.document_start is None:
            return self._padding(held)
        # Layers that hold all tokens share one mask: [b, s, t] is much to make for each.
        holds_all = held.first == 0
        if holds_all and self._mask_of_all is not None:
            return self._mask_of_all
        index = held.indices(self.document_start.device)
        mask = index >= self.document_start[..., None]  # [b, s, n]
        allowed = self._padding(held)
        if allowed is not None:
            mask = mask & (allowed if allowed.dim() == 3 else allowed[:, None])
        if holds_all:
            self._mask_of_all = mask
        return mask

    def mask_and_first_key(self, held: Held) -> tuple[Tensor | None, Tensor | None]:
        """Return the same in two parts, for queries that see few of the n tokens.

        Returns:
            A mask as above that leaves documents out; and the index among the n of the first token
            of each query's document, [b, s], negative before the oldest, or None for none.
        """
        if self.document_start is None or held.oldest_slot:
            return self.mask(held), None
        return self._padding(held), self.document_start - held.first

    def _padding(self, held: Held) -> Tensor | None:
        return None if self.attention_mask is None else held.columns(self.attention_mask)
