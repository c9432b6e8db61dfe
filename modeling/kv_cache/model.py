"""The caches of all layers of a model."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.kv_cache.layer import LayerCache, Snapshot
from modeling.kv_cache.storage import storage_bytes


@dataclass(frozen=True)
class KVCacheSnapshot:
    """A moment of a model's cache, to `restore`."""

    layers: list[Snapshot]
    document_start: Tensor | None


class KVCache:
    """The caches of all layers of a model.

    Args:
        layers: One `LayerCache` per layer, first layer first; None for a layer that reads
            another's.
        model: The model it is for, and whose tokens alone it takes; any with as many layers of the
            same shapes if not given.
    """

    def __init__(self, layers: Sequence[LayerCache | None], model: nn.Module | None = None) -> None:
        self.layers = list(layers)
        self._model = None if model is None else weakref.ref(model)
        # [b] int64, for a model that keeps documents apart: where the document of each row's next
        # token starts; None for 0. It is not counted in `num_bytes`: 8 bytes a row, whatever the
        # attention and however long the text, are no part of what a token leaves in the cache.
        self.document_start: Tensor | None = None

    @property
    def stored(self) -> list[LayerCache]:
        """The layers' own caches."""
        return [layer for layer in self.layers if layer is not None]

    @property
    def seen(self) -> int:
        """Tokens per sequence that went in."""
        return self.stored[0].seen

    @property
    def batch_size(self) -> int:
        """Sequences."""
        return self.stored[0].batch_size

    @property
    def max_length(self) -> int:
        """Tokens per sequence that may be seen."""
        return self.stored[0].max_length

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored elements."""
        return self.stored[0].dtype

    def check_made_for(self, model: nn.Module, num_layers: int) -> None:
        """Refuse to serve another model: its keys would mean nothing there.

        Raises:
            ValueError: If this cache was made for another model, or has not as many layers.
        """
        if len(self.layers) != num_layers:
            raise ValueError(
                f"this cache has {len(self.layers)} layers, the model {num_layers}: it was made "
                "for another model"
            )
        if self._model is not None and self._model() is not model:
            raise ValueError(
                "this cache was made for another model, whose keys mean nothing to this one; make "
                "one with model.new_cache"
            )

    def snapshot(self) -> KVCacheSnapshot:
        """Return this moment, to come back to however many tokens later."""
        start = self.document_start
        return KVCacheSnapshot(
            [layer.snapshot() for layer in self.stored], None if start is None else start.clone()
        )

    def restore(self, snapshot: KVCacheSnapshot) -> None:
        """Come back to an earlier moment of this cache.

        Raises:
            ValueError: If it is of another cache, or the tokens of then are forgotten.
        """
        for layer, then in zip(self.stored, snapshot.layers, strict=True):
            layer.restore(then)
        self.document_start = snapshot.document_start

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on, in every layer.

        Raises:
            ValueError: If fewer tokens are stored, a row's document starts later, or a layer
                cannot go back that far; nothing is forgotten then.
        """
        newest = 0 if self.document_start is None else int(self.document_start.max())
        if 0 <= length < newest:
            raise ValueError(
                f"cannot truncate to {length} tokens: a row's document starts at token {newest}, "
                "and where the one before it started is not remembered; reset the cache and feed "
                "the tokens again"
            )
        for layer in self.stored:
            layer.check_truncation(length)
        for layer in self.stored:
            layer.truncate(length)

    def overflow(self) -> str | None:
        """Return a line that says so if a key or value was too large to be stored; else None.

        Such an element is an infinity, of which attention makes likelihoods that are wrong, or no
        numbers. It is reported until `reset`, even where a ring has overwritten it.
        """
        if not any(bool(layer.overflowed) for layer in self.stored):
            return None
        model = None if self._model is None else self._model()
        if model is not None and not all(bool(w.isfinite().all()) for w in model.parameters()):
            return None  # broken weights, whatever the cache
        return (
            "a key or value of this model is larger than a float16 cache holds "
            f"({torch.finfo(torch.float16).max:,.0f})"
        )

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.document_start = None
        for layer in self.stored:
            layer.reset()

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return storage_bytes(t for layer in self.stored for t in layer.live_tensors())
