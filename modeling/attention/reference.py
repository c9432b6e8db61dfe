"""Naive float64 attention, one query and one key at a time: the oracle of the tests.

Written from the papers' equations with explicit loops and nothing shared with the fast modules;
used by tests only.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modeling.attention.grouped_query import GroupedQueryAttentionConfig
from modeling.attention.latent import LatentAttentionConfig

Weights = Mapping[str, Tensor]


def grouped_query_reference(
    config: GroupedQueryAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    *,
    attention_mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    key_value_positions: Tensor | None = None,
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

    Returns:
        [b, s, m] float64.

    Source:
        Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, section 2.2.
    """
    h, g = config.num_attention_heads, config.num_key_value_heads
    causal = key_value_states is None
    source = x if key_value_states is None else key_value_states
    source_positions = positions if causal else _positions_of(source, key_value_positions)
    rows = []
    for b in range(x.shape[0]):
        queries = [_linear(weights, "q_proj", row) for row in x[b]]
        keys = [_linear(weights, "k_proj", row) for row in source[b]]
        values = [_linear(weights, "v_proj", row) for row in source[b]]
        for i, query in enumerate(queries):
            heads = []
            for n in range(h):
                shared = n // (h // g)
                q = _rotate_tail(
                    _qk_norm(query.chunk(h)[n], config, weights, "q_norm"),
                    positions[b, i],
                    config.qk_rope_head_dim,
                    config,
                )
                visible = _visible(i, len(keys), causal, attention_mask, b)
                ks = [
                    _rotate_tail(
                        _qk_norm(keys[j].chunk(g)[shared], config, weights, "k_norm"),
                        source_positions[b, j],
                        config.qk_rope_head_dim,
                        config,
                    )
                    for j in visible
                ]
                vs = [values[j].chunk(g)[shared] for j in visible]
                heads.append(_attend_one(q, ks, vs, config.v_head_dim))
            rows.append(_linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)


def latent_reference(
    config: LatentAttentionConfig,
    weights: Weights,
    x: Tensor,
    positions: Tensor,
    *,
    attention_mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    key_value_positions: Tensor | None = None,
) -> Tensor:
    """Attend through the latent, expanded; arguments and result as above.

    Source:
        DeepSeek-V2, equations 9 to 19 (and 37 to 47 of its appendix C).
    """
    h, c = config.num_attention_heads, config.kv_lora_rank
    d, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    eps = config.latent_norm_eps
    causal = key_value_states is None
    source = x if key_value_states is None else key_value_states
    source_positions = positions if causal else _positions_of(source, key_value_positions)
    rows = []
    for b in range(x.shape[0]):
        latents, shared_keys = [], []
        for j, row in enumerate(source[b]):
            down = _linear(weights, "kv_a_proj_with_mqa", row)
            latents.append(_rms_norm(down[:c], weights["kv_a_layernorm.weight"], eps))
            shared_keys.append(_rotate_tail(down[c:], source_positions[b, j], r, config))
        ups = [_linear(weights, "kv_b_proj", latent).view(h, d + v) for latent in latents]
        for i, row in enumerate(x[b]):
            if config.q_lora_rank is None:
                query = _linear(weights, "q_proj", row)
            else:
                down = _linear(weights, "q_a_proj", row)
                norm = _rms_norm(down, weights["q_a_layernorm.weight"], eps)
                query = _linear(weights, "q_b_proj", norm)
            visible = _visible(i, len(ups), causal, attention_mask, b)
            heads = []
            for n in range(h):
                q = _rotate_tail(query.view(h, d + r)[n], positions[b, i], r, config)
                ks = [torch.cat((ups[j][n, :d], shared_keys[j])) for j in visible]
                vs = [ups[j][n, d:] for j in visible]
                heads.append(_attend_one(q, ks, vs, v))
            rows.append(_linear(weights, "o_proj", torch.cat(heads)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)


def _positions_of(states: Tensor, given: Tensor | None) -> Tensor:
    return torch.arange(states.shape[1]).expand(states.shape[:2]) if given is None else given


def _linear(weights: Weights, name: str, row: Tensor) -> Tensor:
    product = weights[f"{name}.weight"].double() @ row.double()
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias.double()


def _rms_norm(row: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight.double() * row / ((row**2).mean() + eps).sqrt()


def _qk_norm(
    head: Tensor, config: GroupedQueryAttentionConfig, weights: Weights, name: str
) -> Tensor:
    if not config.use_qk_norm:
        return head
    return _rms_norm(head, weights[f"{name}.weight"], config.qk_norm_eps)


def _rotate_tail(
    row: Tensor,
    position: Tensor,
    width: int,
    config: GroupedQueryAttentionConfig | LatentAttentionConfig,
) -> Tensor:
    """Rotate the last `width` dimensions: dimension j together with j + width / 2."""
    start = row.shape[0] - width
    out = list(row.unbind())
    for j in range(width // 2):
        angle = float(position) * config.rope_theta ** (-2 * j / width)
        first, second = row[start + j], row[start + j + width // 2]
        out[start + j] = first * math.cos(angle) - second * math.sin(angle)
        out[start + j + width // 2] = second * math.cos(angle) + first * math.sin(angle)
    return torch.stack(out) if out else row


def _visible(
    i: int, num_keys: int, causal: bool, attention_mask: Tensor | None, b: int
) -> list[int]:
    seen = range(i + 1) if causal else range(num_keys)
    if attention_mask is None:
        return list(seen)
    row = attention_mask[b, i] if attention_mask.dim() == 3 else attention_mask[b]
    return [j for j in seen if bool(row[j])]


def _attend_one(query: Tensor, keys: list[Tensor], values: list[Tensor], width: int) -> Tensor:
    if not keys:
        return torch.zeros(width, dtype=torch.float64)
    scores = torch.stack([(query * key).sum() / math.sqrt(query.shape[0]) for key in keys])
    weights = torch.exp(scores - scores.detach().max())
    weights = weights / weights.sum()
    return sum(
        (weight * value for weight, value in zip(weights, values, strict=True)),
        torch.zeros(width, dtype=torch.float64),
    )
