"""The preallocated key-value cache: what attention keeps of the tokens it has seen."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

CacheEntries = Mapping[str, tuple[int, int]]
"""What one token leaves in one layer: entry name -> (heads, width)."""


class LayerCache:
    """One layer's cache: a tensor [batch_size, heads, max_length, width] for each named entry.

    Memory is allocated once; `append` writes behind what is there and returns views, so a decoding
    step copies nothing but its own token.

    Args:
        entries: Entry name -> (heads, width), as `AttentionConfig.kv_cache_entries` gives it.
        batch_size: Sequences decoded together.
        max_length: Tokens per sequence that fit.
        dtype: Of the stored elements.
        device: Where they live.
    """

    def __init__(
        self,
        entries: CacheEntries,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(
                f"a cache needs batch_size >= 1 and max_length >= 1, got {batch_size} and "
                f"{max_length}"
            )
        self.max_length = max_length
        self.length = 0
        self.tensors = {
            name: torch.zeros(batch_size, heads, max_length, width, dtype=dtype, device=device)
            for name, (heads, width) in entries.items()
        }

    def append(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Store s new tokens, without their autograd graph, and return all that is stored.

        Args:
            new: One tensor [batch_size, heads, s, width] for each entry of the cache.

        Returns:
            For each entry, in the order of the arguments, a view
            [batch_size, heads, length, width].

        Raises:
            ValueError: If the entries or their shapes are not those the cache was made for, or if
                the tokens do not fit.
        """
        if new.keys() != self.tensors.keys():
            raise ValueError(
                f"this cache holds {sorted(self.tensors)}, not {sorted(new)}: it was made for "
                "another kind of attention"
            )
        for name, tensor in new.items():
            stored = self.tensors[name]
            expected = (stored.shape[0], stored.shape[1], tensor.shape[2], stored.shape[3])
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"cache entry '{name}' takes [batch, heads, tokens, width] = "
                    f"[{expected[0]}, {expected[1]}, any, {expected[3]}], got "
                    f"{list(tensor.shape)}: it was made for another model or batch"
                )
        end = self.length + next(iter(new.values())).shape[2]
        if end > self.max_length:
            raise ValueError(
                f"the cache holds at most {self.max_length} tokens, {end} would be needed; "
                "make it longer"
            )
        for name, tensor in new.items():
            self.tensors[name][:, :, self.length : end] = tensor.detach()
        self.length = end
        return tuple(self.tensors[name][:, :, :end] for name in new)

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return _storage_bytes(self.tensors.values())

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises:
            ValueError: If fewer tokens are stored.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0


class KVCache:
    """The caches of all layers of a model.

    Args:
        layers: One `LayerCache` per layer, first layer first.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)
        # [b] int64, for a model that keeps documents apart: where the document of each row's next
        # token starts; None for 0. It is not counted in `num_bytes`: 8 bytes a row, whatever the
        # attention and however long the text, are no part of what a token leaves in the cache.
        self.document_start: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens stored per sequence."""
        return self.layers[0].length

    @property
    def max_length(self) -> int:
        """Tokens per sequence that fit."""
        return self.layers[0].max_length

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on, in every layer.

        Raises:
            ValueError: If fewer tokens are stored, or a row's document starts later.
        """
        newest = 0 if self.document_start is None else int(self.document_start.max())
        if 0 <= length < newest:
            raise ValueError(
                f"cannot truncate to {length} tokens: a row's document starts at token {newest}, "
                "and where the one before it started is not remembered; reset the cache and feed "
                "the tokens again"
            )
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.document_start = None
        for layer in self.layers:
            layer.reset()

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return _storage_bytes(t for layer in self.layers for t in layer.tensors.values())


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
