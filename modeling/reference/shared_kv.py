"""Shared key and value in float64, written from its equations."""

from typing import Unpack

import torch
from torch import Tensor

from modeling.attention.shared_kv import SharedKVAttentionConfig
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


@register_oracle(SharedKVAttentionConfig)
def shared_kv_reference(
    config: SharedKVAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    **given: Unpack[Given],
) -> Tensor:
    """Attend to one head z that is key and value; arguments and result as above.

    The value is what z was before rotation, rotated by its distance to the query.

    Source:
        DeepSeek-V4 (transformers' `DeepseekV4Attention`), without compression.
    """
    h, d, r = config.num_attention_heads, config.head_dim, config.qk_rope_head_dim
    eps, theta = config.rms_norm_eps, config.rope_theta
    kept, source, source_positions = kept_of(weights, x, positions, given)
    sinks = sinks_of(config, weights)
    ones = torch.ones(d, dtype=torch.float64)
    rows = []
    for b in range(x.shape[0]):
        zs = [
            rms_norm(linear(kept, "kv_proj", row), kept["kv_norm.weight"], eps) for row in source[b]
        ]
        for i, row in enumerate(x[b]):
            latent = rms_norm(linear(weights, "q_a_proj", row), weights["q_a_norm.weight"], eps)
            seen = visible(config, given, b, i, len(zs))
            ks = [rotate_tail(zs[j], source_positions[b, j], r, theta) for j in seen]
            distances = [source_positions[b, j] - positions[b, i] for j in seen]
            vs = [
                rotate_tail(zs[j], distance, r, theta)
                for j, distance in zip(seen, distances, strict=True)
            ]
            heads = []
            for n, q in enumerate(linear(weights, "q_b_proj", latent).chunk(h)):
                q = rotate_tail(rms_norm(q, ones, eps), positions[b, i], r, theta)
                heads.append(attend_one(q, ks, vs, d, sinks[n]))
            rows.append(linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)
