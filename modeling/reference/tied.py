"""K = V in float64, written from its equations."""

import torch
from torch import Tensor

from modeling.attention.tied import TiedAttentionConfig
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


@register_oracle(TiedAttentionConfig)
def tied_reference(
    config: TiedAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    *,
    attention_mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    key_value_positions: Tensor | None = None,
    producer: Producer | None = None,
) -> Tensor:
    """Attend with values u = W x and keys RoPE(u); arguments and result as above.

    Source:
        Gemma 4's full layers (kv_tie=norm); a layer that reads another's u has its own norms.
    """
    h, g, eps = config.num_attention_heads, config.num_key_value_heads, config.qk_norm_eps
    r, theta, d = config.qk_rope_head_dim, config.rope_theta, config.head_dim
    causal, window = key_value_states is None, config.sliding_window
    sinks = weights["sinks"] if config.attention_sinks else [None] * h
    source = x if key_value_states is None else key_value_states
    kept = weights
    if producer is not None:
        kept, source = producer
    source_positions = positions if causal else positions_of(source, key_value_positions)
    ones = torch.ones(d, dtype=torch.float64)
    rows = []
    for b in range(x.shape[0]):
        shared = [linear(kept, "k_proj", row).chunk(g) for row in source[b]]
        for i, row in enumerate(x[b]):
            heads = []
            for n, q in enumerate(linear(weights, "q_proj", row).chunk(h)):
                if config.use_qk_norm:
                    q = rms_norm(q, weights["q_norm.weight"], eps)
                seen = visible(i, len(shared), causal, attention_mask, b, window)
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
