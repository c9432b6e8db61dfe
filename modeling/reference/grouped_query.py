"""Grouped-query attention in float64, written from the papers' equations."""

import torch
from torch import Tensor

from modeling.attention.grouped_query import GroupedQueryAttentionConfig
from modeling.reference.common import (
    Producer,
    Weights,
    attend_one,
    linear,
    positions_of,
    rms_norm,
    rotate_tail,
    visible,
)
from modeling.reference.registry import register_oracle


@register_oracle(GroupedQueryAttentionConfig)
def grouped_query_reference(
    config: GroupedQueryAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    *,
    attention_mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    key_value_positions: Tensor | None = None,
    producer: Producer | None = None,
) -> Tensor:
    """Attend with h query heads and g key-value heads.

    Args:
        config: Widths and heads.
        weights: The module's state dict.
        x: [b, s, m].
        positions: [b, s].
        attention_mask: Bool, [b, t], True where a key is real, or [b, s, t], True where a query may
            see a key.
        key_value_states: [b, t, m] for cross attention.
        key_value_positions: [b, t].
        producer: Of the layer whose keys and values are read, if the configuration names one.

    Returns:
        [b, s, m] float64.

    Source:
        Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, section 2.2.
    """
    h, g = config.num_attention_heads, config.num_key_value_heads
    causal, window = key_value_states is None, config.sliding_window
    sinks = weights["sinks"] if config.attention_sinks else [None] * h
    source = x if key_value_states is None else key_value_states
    kept = weights
    if producer is not None:
        kept, source = producer
    source_positions = positions if causal else positions_of(source, key_value_positions)
    rows = []
    for b in range(x.shape[0]):
        queries = [linear(weights, "q_proj", row) for row in x[b]]
        keys = [linear(kept, "k_proj", row) for row in source[b]]
        values = [linear(kept, "v_proj", row) for row in source[b]]
        for i, query in enumerate(queries):
            heads = []
            for n in range(h):
                shared = n // (h // g)
                q = rotate_tail(
                    _qk_norm(query.chunk(h)[n], config, weights, "q_norm"),
                    positions[b, i],
                    config.qk_rope_head_dim,
                    config.rope_theta,
                )
                seen = visible(i, len(keys), causal, attention_mask, b, window)
                ks = [
                    rotate_tail(
                        _qk_norm(keys[j].chunk(g)[shared], config, kept, "k_norm"),
                        source_positions[b, j],
                        config.qk_rope_head_dim,
                        config.rope_theta,
                    )
                    for j in seen
                ]
                vs = [values[j].chunk(g)[shared] for j in seen]
                heads.append(attend_one(q, ks, vs, config.v_head_dim, sinks[n]))
            rows.append(linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)


def _qk_norm(
    head: Tensor, config: GroupedQueryAttentionConfig, weights: Weights, name: str
) -> Tensor:
    if not config.use_qk_norm:
        return head
    return rms_norm(head, weights[f"{name}.weight"], config.qk_norm_eps)
