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
    FIELDS,
    attention_fields,
    gpt_config,
    require,
    rope_block_problems,
    rope_theta_of,
    unlike,
    written_as_llama,
)
from interop.families.weights import WeightTable, by_head
from modeling.attention import LatentAttentionConfig, attention_config
from modeling.config import GPTConfig

_SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# In the norms of the latents; the classes have no key for it.
_LATENT_NORM_EPS = 1e-6
# Of a model without RoPE: the class needs a rotated part, which stays zero.
_ZERO_ROPE_HEAD_DIM = 2


def write(
    config: GPTConfig, attentions: Sequence[LatentAttentionConfig], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of DeepSeek-V3, or V2.

    Raises:
        InteropError: If weights had to be rounded once more.
    """
    attention = attentions[0]
    keys = written_as_llama(config, attention, _SIZES) | {
        "num_key_value_heads": config.num_attention_heads,
        "qk_rope_head_dim": attention.qk_rope_head_dim or _ZERO_ROPE_HEAD_DIM,
        "first_k_dense_replace": config.num_hidden_layers,
    }
    if config.mlp_bias:
        keys |= {"model_type": "deepseek_v2", "mlp_bias": True}
    else:
        keys |= {"model_type": "deepseek_v3", "rope_interleave": True}
        keys |= {"num_nextn_predict_layers": 0}
    if attention.latent_scale:
        weights = _with_scaled_norms(weights, attention)
    if attention.qk_rope_head_dim == 0:
        return keys, WeightTable().to_theirs(_with_zero_rope(weights, attention))
    return keys, _table(attention).to_theirs(weights)


def problems(config: GPTConfig, attentions: Sequence[LatentAttentionConfig]) -> list[str]:
    """Return why none of them expresses a model."""
    found = rope_block_problems(config)
    if any(attention.sliding_window is not None for attention in attentions):
        found.append(
            f"layers.window={config.layers.window} with latent attention: no stock class keeps a "
            "window of plain latents; train with layers=uniform, or attention=gqa"
        )
    elif len({(each.qk_rope_head_dim, each.rope_theta) for each in attentions}) > 1:
        found.append(
            "layers.pattern: latent attention whose layers differ in RoPE; train with "
            "layers.pattern=null"
        )
    key, why = "model.attention.latent_norm_eps", "DeepSeek-V3 has no key for it"
    return found + unlike(key, attentions[0].latent_norm_eps, _LATENT_NORM_EPS, why)


def interleaved(width: int) -> Tensor:
    """Return where each row of the interleaved order comes from: 0, r/2, 1, r/2 + 1, ..."""
    return torch.arange(width).view(2, -1).t().reshape(-1)


def _table(attention: LatentAttentionConfig) -> WeightTable:
    """Return how the classes store the rows that RoPE rotates."""
    d, c = attention.qk_nope_head_dim, attention.kv_lora_rank
    order = interleaved(attention.qk_rope_head_dim)
    of_head = torch.cat((torch.arange(d), d + order))
    return WeightTable(
        orders={
            _query_name(attention): (0, by_head(attention.num_attention_heads, of_head)),
            "kv_a_proj_with_mqa": (0, torch.cat((torch.arange(c), c + order))),
        }
    )


def _query_name(attention: LatentAttentionConfig) -> str:
    return "q_proj" if attention.q_lora_rank is None else "q_b_proj"


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
            if math.frexp(scale)[0] != 0.5:  # no power of two
                what = "model.attention.latent_scale=true is written into the norms of the latents"
                _require_wide(tensor, what)
            found[name] = (tensor.double() * scale).to(tensor.dtype)
    return found


def _require_wide(tensor: Tensor, what: str) -> None:
    """Refuse to round the weights of a narrow dtype once more.

    Raises:
        InteropError: Saying what would.
    """
    if tensor.dtype in (torch.bfloat16, torch.float16):
        name = str(tensor.dtype).removeprefix("torch.")
        raise InteropError(f"{what}, which {name} would round again; set dtype=float32")


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
        if f".self_attn.{_query_name(attention)}." in name:
            what = "latent attention without positions is written with larger queries"
            _require_wide(tensor, what)
            heads = (tensor.double() * larger).to(tensor.dtype).view(h, d, -1)
            padding = heads.new_zeros(h, r, heads.shape[-1])
            found[name] = torch.cat((heads, padding), dim=1).flatten(0, 1)
        elif ".self_attn.kv_a_proj_with_mqa." in name:
            found[name] = torch.cat((tensor, tensor.new_zeros(r, *tensor.shape[1:])))
    return found


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration describes."""
    del weights
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    why = "every head of a latent attention has keys and values of its own"
    require(read, "num_key_value_heads", read.num_attention_heads, why)
    if read.first_k_dense_replace < read.num_hidden_layers:
        raise InteropError(
            f"config.json: first_k_dense_replace ({read.first_k_dense_replace}) is less than "
            f"num_hidden_layers ({read.num_hidden_layers}): kvlab has no mixture of experts"
        )
    fields = attention_fields(read, _SIZES)
    attention = LatentAttentionConfig(
        **fields, rope_theta=rope_theta_of(read), latent_norm_eps=_LATENT_NORM_EPS
    )
    return gpt_config(read, FIELDS, attention, "mla")


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    if not getattr(read, "rope_interleave", True):  # V2 has no such key
        return WeightTable().to_ours(weights)
    attention = attention_config(config.attention)
    assert isinstance(attention, LatentAttentionConfig)
    return _table(attention).to_ours(weights)
