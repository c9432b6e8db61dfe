"""K = V in float64, written from its equations."""

from typing import Unpack

import torch
from torch import Tensor

from modeling.attention.tied import TiedAttentionConfig
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


@register_oracle(TiedAttentionConfig)
def tied_reference(
    config: TiedAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    **given: Unpack[Given],
) -> Tensor:
    """Attend with values u = W x and keys RoPE(u); arguments and result as above.

    Source:
        Gemma 4's full layers (kv_tie=norm); a layer that reads another's u has its own norms.
    """
    h, g, eps = config.num_attention_heads, config.num_key_value_heads, config.qk_norm_eps
    r, theta, d = config.qk_rope_head_dim, config.rope_theta, config.head_dim
    kept, source, source_positions = kept_of(weights, x, positions, given)
    sinks = sinks_of(config, weights)
    ones = torch.ones(d, dtype=torch.float64)
    rows = []
    for b in range(x.shape[0]):
        shared = [linear(kept, "k_proj", row).chunk(g) for row in source[b]]
        for i, row in enumerate(x[b]):
            heads = []
            for n, q in enumerate(linear(weights, "q_proj", row).chunk(h)):
                if config.use_qk_norm:
                    q = rms_norm(q, weights["q_norm.weight"], eps)
                seen = visible(config, given, b, i, len(shared))
                ks, vs = [], []
                for j in seen:
                    key = value = shared[j][n // (h // g)]
                    if config.kv_tie == "norm":
                        value = rms_norm(value, ones, eps)
                    if config.kv_tie == "norm" or config.use_qk_norm:
                        key = rms_norm(key, weights["k_norm.weight"], eps)
                    ks.append(rotate_tail(key, source_positions[b, j], r, theta))
                    vs.append(value)
                q = rotate_tail(q, positions[b, i], r, theta)
                heads.append(attend_one(q, ks, vs, d, sinks[n]))
            rows.append(linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)
