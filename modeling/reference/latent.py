"""Latent attention in float64, written from the papers' equations, expanded."""

import math
from typing import Unpack

import torch
from torch import Tensor

from modeling.attention.latent import LatentAttentionConfig
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


@register_oracle(LatentAttentionConfig)
def latent_reference(
    config: LatentAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    **given: Unpack[Given],
) -> Tensor:
    """Attend through the latent, expanded; arguments and result as above.

    Source:
        DeepSeek-V2, equations 9 to 19 (and 37 to 47 of its appendix C); the scale of latents is
        LongCat-Flash's (`mla_scale_kv_lora`, `mla_scale_q_lora` in transformers).
    """
    h, c = config.num_attention_heads, config.kv_lora_rank
    d, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    eps, m = config.latent_norm_eps, config.hidden_size
    kept, source, source_positions = kept_of(weights, x, positions, given)
    sinks = sinks_of(config, weights)
    rows = []
    for b in range(x.shape[0]):
        latents, shared_keys = [], []
        for j, row in enumerate(source[b]):
            down = linear(kept, "kv_a_proj_with_mqa", row)
            latent = rms_norm(down[:c], kept["kv_a_layernorm.weight"], eps)
            latents.append(latent * math.sqrt(m / c) if config.latent_scale else latent)
            shared_keys.append(rotate_tail(down[c:], source_positions[b, j], r, config.rope_theta))
        ups = [linear(weights, "kv_b_proj", latent).view(h, d + v) for latent in latents]
        for i, row in enumerate(x[b]):
            if config.q_lora_rank is None:
                query = linear(weights, "q_proj", row)
            else:
                down = linear(weights, "q_a_proj", row)
                norm = rms_norm(down, weights["q_a_layernorm.weight"], eps)
                if config.latent_scale:
                    norm = norm * math.sqrt(m / config.q_lora_rank)
                query = linear(weights, "q_b_proj", norm)
            seen = visible(config, given, b, i, len(ups))
            heads = []
            for n in range(h):
                q = rotate_tail(query.view(h, d + r)[n], positions[b, i], r, config.rope_theta)
                ks = [torch.cat((ups[j][n, :d], shared_keys[j])) for j in seen]
                vs = [ups[j][n, d:] for j in seen]
                heads.append(attend_one(q, ks, vs, v, sinks[n]))
            rows.append(linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)
