"""The attention of DeepSeek-V4 (shared_kv), in its class with all else made neutral.

DeepSeek-V4 has hyper-connections, a mixture of experts and a low-rank output projection as well.
With one stream, one expert of zeros next to the shared one, and an identity, they compute kvlab's
block; the weights that this takes are dead. Its RoPE rotates dimension 2j together with 2j + 1, on
the last dimensions of queries and of the head that is key and value (see `families.deepseek`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interop.errors import InteropError
from interop.families.config_json import (
    FIELDS,
    attention_fields,
    default_theta,
    gpt_config,
    require,
    rope_block_problems,
    unlike,
    written_as_llama,
)
from interop.families.deepseek import interleaved
from interop.families.layers import NO_SINK, SLIDING, is_idle, layers_of, sinks_name, window_of
from interop.families.weights import WeightTable, by_head
from modeling.attention import attention_config
from modeling.attention.shared_kv import SharedKVAttentionConfig
from modeling.config import GPTConfig, LayersConfig

# A window that no text fills, since every layer of the class has one.
_NO_WINDOW = 2**20
_OPEN = 1e4
"""What hyper-connections are biased with: its sigmoid is 1."""
_PARTS = {
    "hc": "hyper-connections",
    ".mlp.": "mixture of experts",
    "o_b_proj": "low-rank output projection",
}
"""By a part of the names of weights that do nothing: what they would do otherwise."""
_MULTIPLE = 8
"""Numbers of bfloat16 in the 16 bytes that PyTorch's matmul of experts asks for."""
_SIZES = ("head_dim", "q_lora_rank")
_FIELDS = FIELDS | {"intermediate_size": "moe_intermediate_size"}
_NEUTRAL = {
    **{"num_key_value_heads": 1, "n_shared_experts": 1, "n_routed_experts": 1},
    **{"hc_mult": 1, "hc_eps": 0.0, "o_groups": 1, "mlp_bias": False, "attention_bias": False},
}
_WHY = {
    **dict.fromkeys(("hc_mult", "hc_eps"), "kvlab has no hyper-connections"),
    **dict.fromkeys(("n_shared_experts", "n_routed_experts"), "kvlab has no mixture of experts"),
    "o_groups": "kvlab's output projection is whole",
}


def write(
    config: GPTConfig, attentions: Sequence[SharedKVAttentionConfig], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of DeepSeek-V4."""
    attention, layers = attentions[0], config.num_hidden_layers
    d, r = attention.head_dim, attention.qk_rope_head_dim
    # The class rounds head_dim times this down, for some widths to r - 1.
    factor = r / d if int(d * (r / d)) == r else (r + 0.5) / d
    rope = {"rope_type": "default", "rope_theta": attention.rope_theta}
    rope |= {"partial_rotary_factor": factor}
    keys = written_as_llama(config, attention, _SIZES, _FIELDS) | _NEUTRAL
    keys |= {
        "model_type": "deepseek_v4",
        "partial_rotary_factor": factor,
        "rope_parameters": {"main": rope, "compress": rope},
        "sliding_window": window_of(layers_of(attentions)) or _NO_WINDOW,
        "layer_types": [SLIDING] * layers,
        "mlp_layer_types": ["moe"] * layers,
        "num_experts_per_tok": 1,
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 1.0,
        "hc_sinkhorn_iters": 1,
        # The largest number of its dtype: nothing is clipped.
        "swiglu_limit": _largest(weights["embed_tokens.weight"].dtype),
        "o_lora_rank": config.hidden_size,
        "num_nextn_predict_layers": 0,
    }
    return keys, _dead(config, weights) | _table(attention).to_theirs(weights)


def _largest(dtype: torch.dtype) -> float:
    return float(min(torch.finfo(dtype).max, torch.finfo(torch.float32).max))


def problems(config: GPTConfig, attentions: Sequence[SharedKVAttentionConfig]) -> list[str]:
    """Return why it does not express a model."""
    attention, found = attentions[0], rope_block_problems(config)
    if any(each.qk_rope_head_dim == 0 for each in attentions):
        found.append(
            "attention=shared_kv without RoPE: DeepSeek-V4 rotates at least two dimensions; train "
            "with model.attention.qk_rope_head_dim=2 or more, in every layer"
        )
    if len(set(attentions)) > 1:
        found.append(
            f"layers={config.layers.name} with attention=shared_kv: DeepSeek-V4 has one window and "
            "one RoPE for all layers; train with layers=uniform or layers=window"
        )
    why = "DeepSeek-V4 has no biases"
    found += unlike("model.attention.attention_bias", attention.attention_bias, False, why)
    found += unlike("model.mlp_bias", config.mlp_bias, False, why)
    for key in ("hidden_size", "intermediate_size"):
        if getattr(config, key) % _MULTIPLE:
            found.append(
                f"model.{key}={getattr(config, key)} with attention=shared_kv: DeepSeek-V4's "
                f"experts take multiples of {_MULTIPLE}; train with one"
            )
    key, why = "model.attention.rms_norm_eps", "DeepSeek-V4 has one number for all norms"
    return found + unlike(key, attention.rms_norm_eps, config.norm_eps, why)


def _table(attention: SharedKVAttentionConfig) -> WeightTable:
    """Return how the class stores what kvlab has, with the dimensions that RoPE rotates."""
    d, r = attention.head_dim, attention.qk_rope_head_dim
    of_head = torch.cat((torch.arange(d - r), d - r + interleaved(r)))
    of_heads = by_head(attention.num_attention_heads, of_head)
    return WeightTable(
        names={".self_attn.o_proj.": ".self_attn.o_a_proj.", ".mlp.": ".mlp.shared_experts."},
        orders={
            "q_b_proj": (0, of_heads),
            "kv_proj": (0, of_head),
            "kv_norm": (0, of_head),
            "o_proj": (1, of_heads),
        },
    )


def _dead(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that do nothing."""
    like = weights["embed_tokens.weight"]
    m, width = config.hidden_size, config.intermediate_size
    found = {
        "model.hc_head.hc_fn": like.new_zeros(1, m),
        "model.hc_head.hc_base": like.new_full((1,), _OPEN),
        "model.hc_head.hc_scale": like.new_zeros(1),
    }
    for idx in range(config.num_hidden_layers):
        layer = f"model.layers.{idx}"
        found[sinks_name(idx)] = like.new_full((config.num_attention_heads,), NO_SINK)
        found[f"{layer}.self_attn.o_b_proj.weight"] = torch.eye(
            m, dtype=like.dtype, device=like.device
        )
        found |= {
            f"{layer}.mlp.gate.weight": like.new_zeros(1, m),
            f"{layer}.mlp.gate.e_score_correction_bias": like.new_zeros(1),
            f"{layer}.mlp.experts.gate_up_proj": like.new_zeros(1, 2 * width, m),
            f"{layer}.mlp.experts.down_proj": like.new_zeros(1, m, width),
        }
        for part in ("attn_hc", "ffn_hc"):
            # What a block reads of the stream is all of it, and twice sigmoid(0) what it adds.
            base = torch.zeros_like(like.new_empty(3))
            base[0] = _OPEN
            found[f"{layer}.{part}.fn"] = like.new_zeros(3, m)
            found[f"{layer}.{part}.base"] = base
            found[f"{layer}.{part}.scale"] = like.new_zeros(3)
    return found


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration describes."""
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    for key, value in _NEUTRAL.items():
        require(read, key, value, _WHY.get(key, "kvlab's module has it so"))
    require(read, "o_lora_rank", read.hidden_size, "kvlab's output projection is whole")
    if read.swiglu_limit < _largest(torch.float16):
        raise InteropError(
            f"config.json: swiglu_limit ({read.swiglu_limit}) must be 65504 or more: kvlab's MLP "
            "clips nothing"
        )
    for key, kind in (("layer_types", SLIDING), ("mlp_layer_types", "moe")):
        if others := set(getattr(read, key)) - {kind}:
            raise InteropError(
                f"config.json: {key}: kvlab has no {sorted(others)[0]!r} layers of this class, "
                f"only {kind}"
            )
    rope = read.rope_parameters["main"]
    if int(read.head_dim * rope.get("partial_rotary_factor", 1.0)) != read.qk_rope_head_dim:
        raise InteropError(
            "config.json: rope_parameters: partial_rotary_factor of main contradicts that of the "
            "model"
        )
    window = read.sliding_window
    if type(window) is not int or window < 2:
        raise InteropError(
            f"config.json: sliding_window ({str(window)[:60]}) must be a whole number of at least 2"
        )
    layers = LayersConfig()
    sinks = any(not is_idle(weights.get(sinks_name(idx))) for idx in range(read.num_hidden_layers))
    if sinks or window < read.max_position_embeddings:
        layers = LayersConfig(name="window", window=window, sinks=sinks)
    attention = SharedKVAttentionConfig(
        **attention_fields(read, (*_SIZES, "qk_rope_head_dim")),
        v_head_dim=read.head_dim,
        rope_theta=default_theta(rope),
        rms_norm_eps=read.rms_norm_eps,
    )
    return gpt_config(read, _FIELDS, attention, "shared_kv", layers=layers)


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict.

    Raises:
        InteropError: Naming weights of a part that kvlab does not have and that do something.
    """
    dead = _dead(config, {"embed_tokens.weight": weights["model.embed_tokens.weight"]})
    sinks = {sinks_name(idx) for idx in range(read.num_hidden_layers)}
    for name in sorted(dead.keys() - sinks):
        # Another dtype may have rounded them.
        if not torch.allclose(weights[name].float(), dead[name].float(), rtol=0.01, atol=0.0):
            what = next(what for part, what in _PARTS.items() if part in name)
            raise InteropError(f"weights {name[:100]}: kvlab has no {what}")
    alive = weights.keys() - (dead.keys() - sinks if config.layers.sinks else dead.keys())
    attention = attention_config(config.attention)
    assert isinstance(attention, SharedKVAttentionConfig)
    return _table(attention).to_ours({name: weights[name] for name in weights if name in alive})
