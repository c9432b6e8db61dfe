"""Scaled dot-product attention, by the fastest way that the shapes allow."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.attention.blocks import attend_windowed
from modeling.attention.forward_pass import ForwardPass
from modeling.kv_cache import Held

BLOCK_ELEMENTS = 2**20
"""Most elements that `attend_in_blocks` makes at once: scores, and keys that are converted."""
_MANY_TOKENS = 2**15
"""The batch size from which products beat the fused kernel where no heads share a key head."""

ReadBlock = Callable[[int, int, torch.dtype], tuple[Tensor, Tensor]]
"""Keys [b, g, n, d] and values [b, g, n, v] of tokens [start, end), in a dtype to compute with."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    scale: float,
    fold: bool,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend with h query heads to g key-value heads; query head i reads key head i // (h / g).

    Args:
        query: [b, h, s, d].
        key: [b, g, t, d], h a multiple of g.
        value: [b, g, t, v].
        causal: The s queries are the last s of the t tokens and see none after their own.
        scale: Factor of the scores.
        fold: Put the query heads that share a key head behind each other along the query length
            instead of repeating the key head for each: the cache is read once, not h / g times.
        attention_mask: Bool, [b, t], True where a key is a real token, or [b, s, t], True where a
            query may see a key.
        dropout: Probability, on the weights.

    Returns:
        [b, h, s, v].
    """
    b, h, s, _ = query.shape
    g, t = key.shape[1], key.shape[2]
    # PyTorch's is_causal aligns top-left: with s < t it would show the last queries too little.
    top_left = causal and s == t and attention_mask is None
    mask = None if top_left else _visible(s, t, causal, attention_mask, query.device)

    v_head_dim = value.shape[-1]
    is_padded = s > 1 and query.shape[-1] > v_head_dim
    if is_padded:
        # The fused CPU and CUDA kernels take one width for all; padding costs far less than the
        # unfused kernel. For a single query the copy of the values would cost more than it saves.
        value = F.pad(value, (0, query.shape[-1] - v_head_dim))

    fold = fold and g < h and not top_left
    if fold:
        query = query.reshape(b, g, h // g * s, query.shape[-1])  # [b, g, h/g*s, d]
        if mask is not None and s > 1:
            mask = mask.repeat(1, 1, h // g, 1)  # [b or 1, 1, h/g*s, t]; one row fits all
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=top_left,
        scale=scale,
        enable_gqa=query.shape[1] != g,
    )
    if fold:
        output = output.reshape(b, h, s, output.shape[-1])  # [b, h, s, v]
    return output[..., :v_head_dim] if is_padded else output


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return [b, s, heads * width] as [b, heads, s, width]."""
    b, s, width = x.shape
    if s == 1:  # one call less: at a token's pace they count
        return x.view(b, num_heads, 1, width // num_heads)
    return x.view(b, s, num_heads, width // num_heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Return [b, heads, s, width] as [b, s, heads * width]."""
    b, num_heads, s, width = x.shape
    joined = x if s == 1 else x.transpose(1, 2)
    return joined.reshape(b, s, num_heads * width)


def _visible(
    s: int, t: int, causal: bool, attention_mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return which keys each query may see, [b or 1, 1, s, t] bool; None if all."""
    mask = None
    if causal and s > 1:
        mask = torch.ones(s, t, dtype=torch.bool, device=device).tril(t - s)[None, None]
    if attention_mask is not None:
        if attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None]  # [b, 1, t]
        allowed = attention_mask[:, None]  # [b, 1, 1 or s, t]
        mask = allowed.expand(-1, 1, s, t) if mask is None else mask & allowed
    return mask


def prefers_blocks(query: Tensor, held: Held, num_key_value_heads: int) -> bool:
    """Choose between `attend_in_blocks` and `attend` for one query per sequence.

    docs/mla.md has the table and where it was measured.

    Args:
        query: [b, h, 1, d].
        held: What it reads.
        num_key_value_heads: g.
    """
    if held.dtype != query.dtype:
        return True  # the fused kernel would need a converted copy of the whole cache
    if query.device.type != "cpu":
        return False
    is_folded = num_key_value_heads < query.shape[1]
    if query.dtype in (torch.bfloat16, torch.float16):
        # The fused kernel is slow here, but for bfloat16 with heads to fold.
        return query.dtype == torch.float16 or not is_folded
    return not is_folded and query.shape[0] * held.num_tokens >= _MANY_TOKENS


def entries_of(held: Held, key: str, value: str) -> ReadBlock:
    """Return what reads one entry of what is held as keys, and another, or the same, as values."""

    def read(start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys = held.read(key, dtype, start, end)
        return keys, keys if value == key else held.read(value, dtype, start, end)

    return read


def attend_held(
    query: Tensor,
    held: Held,
    read: ReadBlock,
    num_key_value_heads: int,
    *,
    path: str,
    causal: bool,
    scale: float,
    forward_pass: ForwardPass,
    fold: bool | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    computed: bool = False,
) -> Tensor:
    """Attend to all that is held, by the way that the shapes ask for.

    Args:
        query: [b, h, s, d].
        held: Its newest s tokens are those of the query, if causal.
        read: Returns keys and values of a part of it.
        num_key_value_heads: g.
        path: blocks, auto, which takes the faster way, or anything else for `attend`, such as
            folded and repeated. Blocks are for one query of a cache and without dropout.
        causal: As in `attend`.
        scale: As in `attend`.
        forward_pass: Padding and documents.
        fold: As in `attend`; None as `path` says, else for one query of a cache. Blocks always
            fold.
        window: Newest tokens that a query sees, itself included; None for all.
        sinks: [h], a logit per head that joins the softmax and whose weight is dropped.
        dropout: As in `attend`.
        computed: `read` computes what it returns: auto takes blocks, so that it is never there for
            all tokens at once.

    Returns:
        [b, h, s, v].
    """
    s, n = query.shape[2], held.num_tokens
    if s == 1 and held.is_cached and dropout == 0.0:
        in_blocks = path == "blocks" or sinks is not None
        prefers = path == "auto" and (computed or prefers_blocks(query, held, num_key_value_heads))
        if in_blocks or prefers:
            return attend_in_blocks(
                query,
                read,
                n,
                num_key_value_heads,
                scale=scale,
                stored_dtype=None if computed else held.dtype,
                attention_mask=forward_pass.mask(held),
                sinks=sinks,
            )
    key, value = read(0, n, query.dtype)
    if (sinks is not None and s > 0) or (window is not None and s > 1 and n > window):
        mask, first_key = forward_pass.mask_and_first_key(held)
        return attend_windowed(
            query,
            key,
            value,
            scale=scale,
            window=window,
            sink=sinks,
            attention_mask=mask,
            first_key=first_key,
            dropout=dropout,
        )
    if fold is None:
        fold = held.is_cached and (path == "folded" or (path != "repeated" and s == 1))
    return attend(
        query,
        key,
        value,
        causal=causal,
        scale=scale,
        fold=fold,
        attention_mask=forward_pass.mask(held),
        dropout=dropout,
    )


def attend_in_blocks(
    query: Tensor,
    read: ReadBlock,
    length: int,
    num_key_value_heads: int,
    *,
    scale: float,
    stored_dtype: torch.dtype | None,
    attention_mask: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend with one query per head by matrix products over blocks of the cache.

    Nothing that is allocated grows with the length of the cache. It computes in float32, or float64
    for such queries.

    Args:
        query: [b, h, 1, d].
        read: Returns keys and values of a block; query head i reads key head i // (h / g).
        length: Tokens in the cache, all of them visible but for the mask.
        num_key_value_heads: g.
        scale: Factor of the scores.
        stored_dtype: Of what `read` returns views of, if that is what is computed with; None if it
            computes keys.
        attention_mask: Bool, [b, t] or [b, 1, t], True where a key is a real token. A row that has
            none gets zeros.
        sinks: [h], a logit per head that joins the softmax and whose weight is dropped.

    Returns:
        [b, h, 1, v].

    Source:
        Softmax in one pass over blocks: Milakov and Gimelshein 2018 (arXiv 1805.02867).
    """
    b, h, _, d = query.shape
    g = num_key_value_heads
    dtype = query.dtype if query.dtype in (torch.float32, torch.float64) else torch.float32
    hidden = None
    if attention_mask is not None:
        hidden = attention_mask.reshape(b, 1, 1, length).logical_not()
    scaled = query.to(dtype).reshape(b, g, h // g, d) * scale
    made = b * h if stored_dtype == dtype else b * (h + g * d)
    size = max(1, BLOCK_ELEMENTS // made)
    if 0 < length <= size and hidden is None and sinks is None:
        key, value = read(0, length, dtype)
        output = (scaled @ key.transpose(2, 3)).softmax(dim=-1) @ value
        return output.reshape(b, h, 1, -1).to(query.dtype)
    sums = None
    for start in range(0, length, size):
        end = min(start + size, length)
        key, value = read(start, end, dtype)
        masked = None if hidden is None else hidden[..., start:end]
        block = _block_sums(scaled, key, value, masked)
        sums = block if sums is None else _merged(sums, block)
    if sums is None:
        return query.new_zeros(b, h, 1, read(0, 0, dtype)[1].shape[-1])
    if sinks is not None:
        sums = _merged(sums, _sink_sums(sinks.to(dtype).view(1, g, h // g, 1), sums))
    _, total, output = sums
    # A row without a token has summed nothing.
    output = output / total.clamp_min(torch.finfo(dtype).tiny)
    return output.reshape(b, h, 1, -1).to(query.dtype)


_Sums = tuple[Tensor, Tensor, Tensor]
"""A block's highest score, sum of the weights exp(score - highest) and weighted sum of values."""


def _block_sums(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> _Sums:
    """Attend with query [b, g, h/g, d] to key [b, g, n, d] and value [b, g, n, v]."""
    scores = query @ key.transpose(2, 3)  # [b, g, h/g, n]
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    # Detached: the result does not depend on it.
    highest = scores.detach().amax(dim=-1, keepdim=True)
    highest.clamp_min_(torch.finfo(scores.dtype).min)
    weights = scores.sub_(highest).exp_()
    return highest, weights.sum(dim=-1, keepdim=True), weights @ value


def _sink_sums(sinks: Tensor, sums: _Sums) -> _Sums:
    """Return the sums of a block of one key with these scores, and a value of zeros."""
    highest = sinks.detach().expand_as(sums[0])
    return highest, (sinks - highest).exp(), torch.zeros_like(sums[2])


def _merged(first: _Sums, second: _Sums) -> _Sums:
    """Return the sums over two blocks together."""
    highest = torch.maximum(first[0], second[0])
    shrink = [(sums[0] - highest).exp_() for sums in (first, second)]
    total = first[1] * shrink[0] + second[1] * shrink[1]
    output = first[2] * shrink[0] + second[2] * shrink[1]
    return highest, total, output
