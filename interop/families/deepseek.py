"""Latent attention: DeepSeek-V3, with no layer that has experts; DeepSeek-V2 for biases in the MLP.

DeepSeek's weights are for RoPE that rotates dimension 2j together with 2j + 1 (interleaved), which
is what serving engines expect; kvlab's are for j together with j + r/2 (see `modeling.rope`). What
is rotated of queries and of the shared key has its rows in the other order, which changes no
product of the two.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interop.errors import InteropError
from interop.families.config_json import (
    gpt_config,
    refuse,
    require,
    rope_block_problems,
    rope_theta_of,
    shared_keys,
    with_prefix,
    without_prefix,
)
from interop.families.layers import arrangement_problems
from modeling.attention import LatentAttentionConfig, attention_config
from modeling.config import GPTConfig

# In the norms of the latents; the classes have no key for it.
_LATENT_NORM_EPS = 1e-6
# Of a model without RoPE: the class needs a rotated part, which stays zero.
_ZERO_ROPE_HEAD_DIM = 2


def to_stock(
    config: GPTConfig, attentions: Sequence[LatentAttentionConfig], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of DeepSeek-V3, or V2.

    Args:
        config: The model.
        attentions: One a layer.
        weights: Its state dict.

    Raises:
        InteropError: If they do not express the model.
    """
    attention = attentions[0]
    problems = rope_block_problems(config) + arrangement_problems(config, attentions)
    problems += _window_problems(config, attentions)
    if attention.latent_norm_eps != _LATENT_NORM_EPS:
        problems.append(
            f"model.attention.latent_norm_eps={attention.latent_norm_eps}: DeepSeek-V3 has no key "
            f"for it; train with model.attention.latent_norm_eps={_LATENT_NORM_EPS}"
        )
    refuse(problems)
    rope_head_dim = attention.qk_rope_head_dim or _ZERO_ROPE_HEAD_DIM
    keys = shared_keys(config, attention) | {
        "num_key_value_heads": config.num_attention_heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "first_k_dense_replace": config.num_hidden_layers,
    }
    if config.mlp_bias:
        keys |= {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"}
        keys |= {"mlp_bias": True}
    else:
        keys |= {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
        keys |= {"rope_interleave": True, "num_nextn_predict_layers": 0}
    if attention.latent_scale:
        weights = _with_scaled_norms(weights, attention)
    if attention.qk_rope_head_dim == 0:
        return keys, with_prefix(_with_zero_rope(weights, attention))
    order = interleaved(attention.qk_rope_head_dim)
    return keys, with_prefix(_reordered(weights, attention, order))


def _window_problems(config: GPTConfig, attentions: Sequence[LatentAttentionConfig]) -> list[str]:
    if any(attention.sliding_window is not None for attention in attentions):
        return [
            f"layers.window={config.layers.window} with latent attention: no stock class keeps a "
            "window of plain latents; train with layers=uniform, or attention=gqa"
        ]
    if len({(each.qk_rope_head_dim, each.rope_theta) for each in attentions}) > 1:
        return [
            "layers.pattern: latent attention whose layers differ in RoPE; train with "
            "layers.pattern=null"
        ]
    return []


def interleaved(width: int) -> Tensor:
    """Return where each row of the interleaved order comes from: 0, r/2, 1, r/2 + 1, ..."""
    return torch.arange(width).view(2, -1).t().reshape(-1)


def _reordered(
    weights: Mapping[str, Tensor], attention: LatentAttentionConfig, order: Tensor
) -> dict[str, Tensor]:
    """Return the weights with the rows that RoPE rotates in another order."""
    h, d, c = attention.num_attention_heads, attention.qk_nope_head_dim, attention.kv_lora_rank
    query_rows = torch.cat((torch.arange(d), d + order))  # of a head
    by_head = torch.arange(h).unsqueeze(1) * len(query_rows) + query_rows
    rows = {
        _query_name(attention): by_head.flatten(),
        "kv_a_proj_with_mqa.": torch.cat((torch.arange(c), c + order)),
    }
    found = dict(weights)
    for name, tensor in weights.items():
        for part, some in rows.items():
            if f".self_attn.{part}" in name:
                found[name] = tensor[some.to(tensor.device)]
    return found


def _with_scaled_norms(
    weights: Mapping[str, Tensor], attention: LatentAttentionConfig
) -> dict[str, Tensor]:
    """Return the weights with the scale of the latents in the norms before it.

    Raises:
        InteropError: If that would round the weights visibly.
    """
    widths = {"kv_a_layernorm.": attention.kv_lora_rank, "q_a_layernorm.": attention.q_lora_rank}
    found = dict(weights)
    for name, tensor in weights.items():
        for part, width in widths.items():
            if width is None or f".self_attn.{part}" not in name:
                continue
            scale = attention.scale_of_latent(width)
            is_exact = math.frexp(scale)[0] == 0.5  # a power of two
            if tensor.dtype in (torch.bfloat16, torch.float16) and not is_exact:
                raise InteropError(
                    "model.attention.latent_scale=true is written into the norms of the latents, "
                    f"which {str(tensor.dtype).removeprefix('torch.')} would round again; set "
                    "dtype=float32"
                )
            found[name] = (tensor.double() * scale).to(tensor.dtype)
    return found


def _query_name(attention: LatentAttentionConfig) -> str:
    return "q_proj." if attention.q_lora_rank is None else "q_b_proj."


def _with_zero_rope(
    weights: Mapping[str, Tensor], attention: LatentAttentionConfig
) -> dict[str, Tensor]:
    """Return the weights with two rotated dimensions that are zero in every query and key.

    The class then divides products by sqrt(d + 2) instead of sqrt(d): queries are larger by that.

    Raises:
        InteropError: If that would round the weights visibly.
    """
    h, d, r = attention.num_attention_heads, attention.qk_nope_head_dim, _ZERO_ROPE_HEAD_DIM
    larger = math.sqrt((d + r) / d)
    found = dict(weights)
    for name, tensor in weights.items():
        if f".self_attn.{_query_name(attention)}" in name:
            if tensor.dtype in (torch.bfloat16, torch.float16):
                raise InteropError(
                    "latent attention without positions is written with larger queries, which "
                    f"{str(tensor.dtype).removeprefix('torch.')} would round again; set "
                    "dtype=float32"
                )
            heads = (tensor.double() * larger).to(tensor.dtype).view(h, d, -1)
            padding = heads.new_zeros(h, r, heads.shape[-1])
            found[name] = torch.cat((heads, padding), dim=1).flatten(0, 1)
        elif ".self_attn.kv_a_proj_with_mqa." in name:
            found[name] = torch.cat((tensor, tensor.new_zeros(r, *tensor.shape[1:])))
    return found


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration of this family describes.

    Raises:
        InteropError: Naming the key that kvlab's modules cannot follow.
    """
    del weights
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    require(
        read,
        "num_key_value_heads",
        read.num_attention_heads,
        "every head of a latent attention has keys and values of its own",
    )
    if read.first_k_dense_replace < read.num_hidden_layers:
        raise InteropError(
            f"config.json: first_k_dense_replace ({read.first_k_dense_replace}) is less than "
            f"num_hidden_layers ({read.num_hidden_layers}): kvlab has no mixture of experts"
        )
    attention = LatentAttentionConfig(
        hidden_size=read.hidden_size,
        num_attention_heads=read.num_attention_heads,
        kv_lora_rank=read.kv_lora_rank,
        q_lora_rank=read.q_lora_rank,
        qk_nope_head_dim=read.qk_nope_head_dim,
        qk_rope_head_dim=read.qk_rope_head_dim,
        v_head_dim=read.v_head_dim,
        rope_theta=rope_theta_of(read),
        attention_bias=bool(read.attention_bias),
        attention_dropout=float(read.attention_dropout or 0.0),
        latent_norm_eps=_LATENT_NORM_EPS,
    )
    return gpt_config(
        read,
        attention,
        "mla",
        intermediate_size=read.intermediate_size,
        mlp_bias=bool(getattr(read, "mlp_bias", False)),
        norm_eps=read.rms_norm_eps,
    )


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    ours = without_prefix(weights)
    if not getattr(read, "rope_interleave", True):  # V2 has no such key
        return ours
    attention = attention_config(config.attention)
    assert isinstance(attention, LatentAttentionConfig)
    order = interleaved(attention.qk_rope_head_dim).argsort()
    return _reordered(ours, attention, order)
