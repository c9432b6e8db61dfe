"""Grouped-query attention in float64, written from the papers' equations."""

from typing import Unpack

import torch
from torch import Tensor

from modeling.attention.grouped_query import GroupedQueryAttentionConfig
from modeling.reference.common import (
    Given,
    Weights,
    attend_one,
    kept_of,
    linear,
    rms_norm,
    rotate_tail,
    sinks_of,
    visible,
)
from modeling.reference.registry import register_oracle


@register_oracle(GroupedQueryAttentionConfig)
def grouped_query_reference(
    config: GroupedQueryAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    **given: Unpack[Given],
) -> Tensor:
    """Attend with h query heads and g key-value heads.

    Args:
        config: Widths and heads.
        weights: The module's state dict.
        x: [b, s, m].
        positions: [b, s].
        given: Masks, other states to attend to, and the layer whose keys and values are read.

    Returns:
        [b, s, m] float64.

    Source:
        Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, section 2.2.
    """
    h, g = config.num_attention_heads, config.num_key_value_heads
    kept, source, source_positions = kept_of(weights, x, positions, given)
    sinks = sinks_of(config, weights)
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
                seen = visible(config, given, b, i, len(keys))
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
