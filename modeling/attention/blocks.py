"""Causal attention through a window: blocks of queries, each with the keys that it can see."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries at a time; docs/performance.md, "Window layers", has the measurements."""


def attend_windowed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sink: Tensor | None = None,
    attention_mask: Tensor | None = None,
    first_key: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend with h query heads to the last keys of g heads; query head i reads i // (h / g).

    The s queries are the last s of the t tokens. Time and memory are O(s (window + BLOCK)), forward
    and backward; the weights are kept for the backward pass. The softmax is computed in float32 (or
    float64), products in the dtype of the inputs, under autocast in autocast's. A second derivative
    is refused.

    Args:
        query: [b, h, s, d].
        key: [b, g, t, d], h a multiple of g.
        value: [b, g, t, v].
        scale: Factor of the scores.
        window: The query at i sees the keys j with i - window < j <= i. None: all j <= i, at a cost
            of O(s t).
        sink: [h], a logit per head that joins the softmax and whose weight is dropped, so that a
            query's weights add up to less than 1.
        attention_mask: Bool, [b, t], True where a key is a real token, or [b, s, t], True where a
            query may see a key. Hidden tokens count in the window; a query that sees no key gets
            zeros.
        first_key: [b, s] int64, index of the first of the t keys that each query may see, such as
            that of its document; costs O(s window), where a mask [b, s, t] costs O(s t).
        dropout: Probability, on the weights after the softmax.

    Returns:
        [b, h, s, v].

    Raises:
        ValueError: If the window is empty, or there are fewer keys than queries.

    Source:
        Window: Longformer (arXiv 2004.05150). Sink: gpt-oss (arXiv 2508.10925).
    """
    s, t = query.shape[2], key.shape[2]
    if (window is not None and window < 1) or s > t:
        raise ValueError(f"window {window} must be at least 1, and {s} queries at most {t} keys")
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = t if window is None else min(window, t)
    hidden = None
    if attention_mask is not None:
        hidden = ~(attention_mask[:, None] if attention_mask.dim() == 2 else attention_mask)
        hidden = hidden[:, None, :, None]  # [b, 1, 1 or s, 1, t]
    return _WindowedAttention.apply(
        query, key, value, sink, hidden, first_key, scale, window, dropout
    )


class _WindowedAttention(torch.autograd.Function):
    """What `attend_windowed` computes; a row is a query of one of the r heads that share keys."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sink: Tensor | None,
        hidden: Tensor | None,
        first_key: Tensor | None,
        scale: float,
        window: int,
        dropout: float,
    ) -> Tensor:
        (b, h, s, _), (g, t) = query.shape, key.shape[1:3]
        r = h // g
        # With a sink the first column of a block is a key that none of its queries can see, or a
        # padded one; its score is replaced by the sink.
        spare = 0 if sink is None else 1
        rows, keys, values = _rows(query, g), _columns(key, spare), _columns(value, spare)
        band = _band(min(BLOCK, s), window, spare, rows).repeat_interleave(r, 0)
        output = rows.new_empty(b * g, s * r, value.shape[-1])
        sink_weight = rows.new_empty(b * g, s * r) if sink is not None else None
        kept = []
        with torch.autocast(query.device.type, enabled=False):
            for start, end, first in _blocks(s, t, window):
                row, column = slice(start * r, end * r), slice(first, t - s + end + spare)
                # Column 0 of the band is the first that the first query of a whole block sees.
                before = first - (t - s + start - window + 1)
                visible = band[: row.stop - row.start, before:][:, : column.stop - column.start]
                scores = torch.baddbmm(
                    visible, rows[:, row], keys[:, column].transpose(1, 2), alpha=scale
                )
                masked = _masked(hidden, first_key, start, end, (first, t - s + end))
                if masked is not None:
                    # Finite, so that a query that sees nothing has no NaN.
                    least = torch.finfo(scores.dtype).min
                    _per_query(scores, b, r, spare).masked_fill_(masked, least)
                if sink is not None:
                    logits = sink.to(scores.dtype).view(1, g, 1, r).expand(b, g, end - start, r)
                    scores[..., 0] = logits.reshape(b * g, -1)
                weights = scores.softmax(dim=-1)
                if masked is not None:
                    _per_query(weights, b, r, spare).masked_fill_(masked, 0.0)
                if sink_weight is not None:
                    sink_weight[:, row] = weights[..., 0]
                    weights[..., 0] = 0.0
                factor = F.dropout(torch.ones_like(weights), dropout) if dropout > 0.0 else None
                product = weights if factor is None else weights * factor
                output[:, row] = torch.bmm(product, values[:, column])
                if any(ctx.needs_input_grad):
                    kept += [weights] if factor is None else [weights, factor]
        summed = None if sink is None else output
        ctx.save_for_backward(rows, keys, values, summed, sink, sink_weight, *kept)
        ctx.shape, ctx.scale, ctx.window, ctx.spare = (b, g, s, t, r), scale, window, spare
        ctx.has_dropout = dropout > 0.0
        return _heads(output, b, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, values, output, sink, sink_weight, *kept = ctx.saved_tensors
        b, g, s, t, r = ctx.shape
        grad = _rows(grad_output, g)
        grad_rows, grad_sink = torch.empty_like(rows), None
        # Of a key many blocks' gradients are added up: in bfloat16 the roundings would pile up.
        wide = torch.promote_types(rows.dtype, torch.float32)
        grad_keys = torch.zeros_like(keys, dtype=wide)
        grad_values = torch.zeros_like(values, dtype=wide)
        weights_of = iter(kept)
        with torch.autocast(grad.device.type, enabled=False):
            for start, end, first in _blocks(s, t, ctx.window):
                row, column = slice(start * r, end * r), slice(first, t - s + end + ctx.spare)
                weights = product = next(weights_of)
                grad_weights = torch.bmm(grad[:, row], values[:, column].transpose(1, 2))
                if ctx.has_dropout:
                    factor = next(weights_of)
                    product = weights * factor
                    grad_weights.mul_(factor)
                grad_values[:, column] += torch.bmm(product.transpose(1, 2), grad[:, row])
                grad_scores = torch.ops.aten._softmax_backward_data(
                    grad_weights, weights, -1, weights.dtype
                )
                grad_rows[:, row] = torch.bmm(grad_scores, keys[:, column])
                grad_keys[:, column] += torch.bmm(grad_scores.transpose(1, 2), rows[:, row])
            grad_rows.mul_(ctx.scale)
            grad_keys.mul_(ctx.scale)
            if sink is not None:
                # d output / d sink = - weight of the sink x output
                change = (grad.to(wide) * output.to(wide)).sum(-1).mul_(-sink_weight)
                grad_sink = change.view(b, g, s, r).sum((0, 2)).view(g * r).to(sink.dtype)
        return (
            _heads(grad_rows, b, r),
            grad_keys[:, ctx.spare :].to(keys.dtype).view(b, g, t, -1),
            grad_values[:, ctx.spare :].to(values.dtype).view(b, g, t, -1),
            grad_sink,
            *(None,) * 5,
        )


def _blocks(s: int, t: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield of each block its queries, [start, end), and the first key that one of them sees."""
    for start in range(0, s, BLOCK):
        yield start, min(start + BLOCK, s), max(0, t - s + start - window + 1)


def _band(queries: int, window: int, spare: int, like: Tensor) -> Tensor:
    """Return 0 where a query of a block sees a key and -inf elsewhere.

    Returns:
        [queries, spare + window - 1 + queries]; columns begin `spare` before the first query's
        first key.
    """
    query = torch.arange(queries, device=like.device)[:, None]
    key = torch.arange(-spare, window - 1 + queries, device=like.device)
    is_hidden = (key < query) | (key > query + window - 1)
    return like.new_zeros(is_hidden.shape).masked_fill_(is_hidden, float("-inf"))


def _masked(
    hidden: Tensor | None, first_key: Tensor | None, start: int, end: int, keys: tuple[int, int]
) -> Tensor | None:
    """Return which of a block's keys are not to be seen, [b, 1, 1 or queries, 1, keys]."""
    found = None
    if hidden is not None:
        found = hidden[..., keys[0] : keys[1]]
        found = found if found.shape[2] == 1 else found[:, :, start:end]
    if first_key is not None:
        index = torch.arange(*keys, device=first_key.device)
        before = index < first_key[:, None, start:end, None, None]
        found = before if found is None else found | before
    return found


def _per_query(scores: Tensor, b: int, r: int, spare: int) -> Tensor:
    """Return a view [b, g, queries, r, keys] of scores [b * g, queries * r, spare + keys]."""
    rows, columns = scores.shape[1:]
    return scores.view(b, -1, rows // r, r, columns)[..., spare:]


def _rows(heads: Tensor, g: int) -> Tensor:
    """Return [b, h, s, d] as [b * g, s * h / g, d]: those that share keys behind each other."""
    b, h, s, d = heads.shape
    return heads.reshape(b, g, h // g, s, d).transpose(2, 3).reshape(b * g, s * h // g, d)


def _heads(rows: Tensor, b: int, r: int) -> Tensor:
    """Return [b * g, s * r, d] as [b, g * r, s, d]."""
    g, s, d = rows.shape[0] // b, rows.shape[1] // r, rows.shape[2]
    return rows.view(b, g, s, r, d).transpose(2, 3).reshape(b, g * r, s, d)


def _columns(heads: Tensor, spare: int) -> Tensor:
    """Return [b, g, t, d] as [b * g, spare + t, d], zeros in front."""
    flat = heads.reshape(-1, *heads.shape[2:])
    return F.pad(flat, (0, 0, spare, 0)) if spare else flat.contiguous()
