"""The preallocated key-value cache: what attention keeps of the tokens it has seen.

What is stored may be narrower than what attention computes with. int8 elements share one bfloat16
scale per token and head, chosen so that the largest of them becomes 127.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

CacheEntries = Mapping[str, tuple[int, int]]
"""What one token leaves in one layer: entry name -> (heads, width)."""

CACHE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)
SCALE_DTYPE = torch.bfloat16
"""Of the scales of int8 elements: its range is float32's, and two bytes are enough."""
_LARGEST_INT8 = 127.0


def cache_dtype_of(name: str | None) -> torch.dtype | None:
    """Return the dtype that a setting names, one of `config.CACHE_DTYPE_NAMES`; None for None."""
    return None if name is None else {str(d): d for d in CACHE_DTYPES}[f"torch.{name}"]


def bytes_per_token(entries: CacheEntries, dtype: torch.dtype) -> int:
    """Return the bytes that a token leaves in one layer, scales included; closed form."""
    scale = SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    return sum(heads * (width * dtype.itemsize + scale) for heads, width in entries.values())


class LayerCache:
    """One layer's cache: a tensor [batch_size, heads, max_length, width] for each named entry.

    Memory is allocated once; `write` puts tokens behind what is there, and `read` returns views
    where what is stored is what is computed with: a step copies nothing but its own token.

    Args:
        entries: Entry name -> (heads, width), as `AttentionConfig.kv_cache_entries` gives it.
        batch_size: Sequences decoded together.
        max_length: Tokens per sequence that fit.
        dtype: Of the stored elements, one of `CACHE_DTYPES`.
        device: Where they live.

    Raises:
        ValueError: If there would be no room for a token, or the dtype is none of those.
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
        if dtype not in CACHE_DTYPES:
            names = ", ".join(str(valid).removeprefix("torch.") for valid in CACHE_DTYPES)
            raise ValueError(f"a cache cannot hold {dtype}; it takes {names}")
        self.dtype = dtype
        self.max_length = max_length
        self.length = 0
        self.tensors: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        for name, (heads, width) in entries.items():
            shape = (batch_size, heads, max_length)
            self.tensors[name] = torch.zeros(*shape, width, dtype=dtype, device=device)
            if dtype == torch.int8:
                self.scales[name] = torch.zeros(*shape, 1, dtype=SCALE_DTYPE, device=device)

    def write(self, **new: Tensor) -> None:
        """Store s new tokens behind those that are there, without their autograd graph.

        Args:
            new: One tensor [batch_size, heads, s, width] for each entry of the cache.

        Raises:
            ValueError: If the entries or their shapes are not those the cache was made for, or if
                the tokens do not fit; nothing is stored then.
        """
        if new.keys() != self.tensors.keys():
            raise ValueError(
                f"this cache holds {sorted(self.tensors)}, not {sorted(new)}: it was made for "
                "another kind of attention"
            )
        num_new = next(iter(new.values())).shape[2]
        for name, tensor in new.items():
            stored = self.tensors[name]
            expected = (stored.shape[0], stored.shape[1], num_new, stored.shape[3])
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"cache entry '{name}' takes [batch, heads, tokens, width] = "
                    f"[{expected[0]}, {expected[1]}, any, {expected[3]}], as many tokens as the "
                    f"other entries, got "
                    f"{list(tensor.shape)}: it was made for another model or batch"
                )
        end = self.length + num_new
        if end > self.max_length:
            raise ValueError(
                f"the cache holds at most {self.max_length} tokens, {end} would be needed; "
                "make it longer"
            )
        for name, tensor in new.items():
            elements = tensor.detach() if tensor.requires_grad else tensor
            if name in self.scales:
                elements, scale = _quantised(elements)
                self.scales[name].narrow(2, self.length, num_new).copy_(scale)
            self.tensors[name].narrow(2, self.length, num_new).copy_(elements)
        self.length = end

    def read(self, name: str, dtype: torch.dtype, start: int = 0, end: int | None = None) -> Tensor:
        """Return tokens [start, end) of an entry, [batch_size, heads, end - start, width].

        Args:
            name: Of the entry.
            dtype: What is computed with; a view if it is what is stored, else a copy.
            start: First token.
            end: One past the last token; all that are stored if not given.
        """
        num_tokens = (self.length if end is None else end) - start
        stored = self.tensors[name].narrow(2, start, num_tokens)
        if name not in self.scales:
            return stored if stored.dtype == dtype else stored.to(dtype)
        scale = self.scales[name].narrow(2, start, num_tokens)
        return stored.to(dtype).mul_(scale)

    def append(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Store s new tokens, and return all that is stored.

        Args:
            new: As in `write`.

        Returns:
            For each entry, in the order of the arguments, [batch_size, heads, length, width] in
            the dtype of what was given: a view if that is what is stored, else a copy.

        Raises:
            ValueError: As in `write`.
        """
        self.write(**new)
        return tuple(self.read(name, tensor.dtype) for name, tensor in new.items())

    def live_tensors(self) -> list[Tensor]:
        """Return every tensor that it keeps, scales included."""
        return [*self.tensors.values(), *self.scales.values()]

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return storage_bytes(self.live_tensors())

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
        model: The model it is for, and whose tokens alone it takes; any with as many layers of the
            same shapes if not given.
    """

    def __init__(self, layers: Sequence[LayerCache], model: nn.Module | None = None) -> None:
        self.layers = list(layers)
        self._model = None if model is None else weakref.ref(model)
        # [b] int64, for a model that keeps documents apart: where the document of each row's next
        # token starts; None for 0. It is not counted in `num_bytes`: 8 bytes a row, whatever the
        # attention and however long the text, are no part of what a token leaves in the cache.
        self.document_start: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens stored per sequence."""
        return self.layers[0].length

    @property
    def batch_size(self) -> int:
        """Sequences."""
        return next(iter(self.layers[0].tensors.values())).shape[0]

    @property
    def max_length(self) -> int:
        """Tokens per sequence that fit."""
        return self.layers[0].max_length

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

    def overflow(self, start: int = 0) -> str | None:
        """Return a line that says so if a key or value was too large to be stored; else None.

        Such an element is an infinity, of which attention makes likelihoods that are wrong, or no
        numbers. Only float16 has a smaller range than what is computed with.

        Args:
            start: First token that is looked at.
        """
        if self.layers[0].dtype != torch.float16:
            return None
        entries = (tensor for layer in self.layers for tensor in layer.tensors.values())
        if not any(bool(tensor[:, :, start : self.length].isinf().any()) for tensor in entries):
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
        for layer in self.layers:
            layer.reset()

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return storage_bytes(t for layer in self.layers for t in layer.live_tensors())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each once: what *measured* means."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _quantised(elements: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 elements and their scales, [..., 1]: elements = int8 x scale, nearly."""
    wide = elements.to(torch.promote_types(elements.dtype, torch.float32))
    largest = wide.abs().amax(dim=-1, keepdim=True)
    scale = (largest / _LARGEST_INT8).to(SCALE_DTYPE)
    # By the scale as it is stored, so that rounding it costs no accuracy; zeros stay zeros.
    divisor = scale.to(wide.dtype).clamp_min_(torch.finfo(SCALE_DTYPE).tiny)
    rounded = (wide / divisor).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8)
    return rounded.to(torch.int8), scale
