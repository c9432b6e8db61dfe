"""Scaled dot-product attention, by the fastest way that the shapes allow."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if s > 1 and query.shape[-1] > v_head_dim:
        # The fused CPU and CUDA kernels take one width for all; padding costs far less than the
        # unfused kernel. For a single query the copy of the values would cost more than it saves.
        value = F.pad(value, (0, query.shape[-1] - v_head_dim))

    fold = fold and g < h and not top_left
    if fold:
        query = query.reshape(b, g, h // g * s, query.shape[-1])  # [b, g, h/g*s, d]
        if mask is not None:
            mask = mask.repeat(1, 1, h // g, 1)  # [b or 1, 1, h/g*s, t]
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
        output = output.reshape(b, h, s, -1)  # [b, h, s, v]
    return output[..., :v_head_dim]


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
