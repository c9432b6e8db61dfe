"""Llama, and what differs from it in one thing: Qwen3, SmolLM3, Granite and Mistral.

Llama: RoPE on whole heads, RMSNorm, SwiGLU. Qwen3 has norms of queries and keys as well, SmolLM3
layers without RoPE, Granite (the one with windows) sinks and a base of RoPE for each layer,
Mistral Llama's weights. All but Llama have layers with windows. kvlab's modules have their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interop.errors import InteropError
from interop.families.config_json import (
    gpt_config,
    head_count_name,
    refuse,
    require,
    rope_block_problems,
    rope_theta_of,
    shared_keys,
    with_prefix,
    without_prefix,
)
from interop.families.layers import (
    NO_SINK,
    Layer,
    arranged,
    arrangement_problems,
    layers_of,
    read_layers,
    sinks_name,
    window_of,
)
from modeling.arrangement import layer_configs
from modeling.attention import GroupedQueryAttentionConfig
from modeling.config import GPTConfig

# What Granite's class is given where no layer has a window: its own default.
_ANY_WINDOW = 128


def to_stock(
    config: GPTConfig,
    attentions: Sequence[GroupedQueryAttentionConfig],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of Llama, Qwen3, SmolLM3 or Granite.

    Args:
        config: The model.
        attentions: One a layer.
        weights: Its state dict.

    Raises:
        InteropError: If none of them expresses the model.
    """
    layers = layers_of(attentions)
    refuse(
        [
            *rope_block_problems(config),
            *arrangement_problems(config, attentions),
            *_problems(config, attentions, layers),
        ]
    )
    with_rope = next((each for each in attentions if each.qk_rope_head_dim), attentions[0])
    keys = shared_keys(config, with_rope) | {
        "num_key_value_heads": with_rope.num_key_value_heads,
        "head_dim": with_rope.head_dim,
    }
    window = window_of(layers)
    kinds = {"layer_types": [layer.kind for layer in layers], "sliding_window": window}
    ours = with_prefix(weights)
    if with_rope.use_qk_norm:
        keys |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
        return keys | kinds | {"use_sliding_window": window is not None}, ours
    keys["mlp_bias"] = config.mlp_bias
    if any(layer.sinks for layer in layers) or len(_bases(layers)) > 1:
        keys |= {"architectures": ["GraniteSWAForCausalLM"], "model_type": "granite_swa"}
        keys |= {"layer_rope_theta": [layer.theta or 0 for layer in layers]} | kinds
        keys |= _GRANITE_NEUTRAL | {"attention_multiplier": with_rope.head_dim**-0.5}
        return keys | {"sliding_window": window or _ANY_WINDOW}, _with_sinks(ours, attentions)
    has_odd_heads = config.hidden_size % config.num_attention_heads  # which Llama's class refuses
    if window is not None or has_odd_heads or any(layer.theta is None for layer in layers):
        keys |= {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
        keys |= {"no_rope_layers": [int(layer.theta is not None) for layer in layers]}
        return keys | kinds | {"use_sliding_window": window is not None}, ours
    return keys | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, ours


_GRANITE_NEUTRAL = dict.fromkeys(
    ("embedding_multiplier", "logits_scaling", "residual_multiplier"), 1.0
)


def _bases(layers: Sequence[Layer]) -> set[float]:
    """Return the different bases of RoPE."""
    return {layer.theta for layer in layers if layer.theta is not None}


def _with_sinks(
    weights: Mapping[str, Tensor], attentions: Sequence[GroupedQueryAttentionConfig]
) -> dict[str, Tensor]:
    """Return a state dict in which every layer has sinks, such as do nothing where it had none."""
    embedding = weights["model.embed_tokens.weight"]
    return {
        sinks_name(idx): embedding.new_full((attention.num_attention_heads,), NO_SINK)
        for idx, attention in enumerate(attentions)
    } | dict(weights)


def _problems(
    config: GPTConfig, attentions: Sequence[GroupedQueryAttentionConfig], layers: Sequence[Layer]
) -> list[str]:
    found = []
    attention = attentions[0]
    d, v = attention.head_dim, attention.v_head_dim
    for r in sorted({each.qk_rope_head_dim for each in attentions} - {0, d}):
        found.append(
            f"model.attention.qk_rope_head_dim={r}: RoPE on a part of each head; train with "
            f"model.attention.qk_rope_head_dim={d}, the whole head"
        )
    if v != d:
        found.append(
            f"model.attention.v_head_dim={v}: values of another width than queries and keys; train "
            f"with model.attention.v_head_dim={d}, or attention=mla"
        )
    return found + (_norm_problems(config, attention, layers) if attention.use_qk_norm else [])


def _norm_problems(
    config: GPTConfig, attention: GroupedQueryAttentionConfig, layers: Sequence[Layer]
) -> list[str]:
    """Return why Qwen3, which has norms of queries and keys, does not express a model with them."""
    key, found = "model.attention.use_qk_norm=true", []
    if not _bases(layers):
        found.append(f"{key} without RoPE; train with RoPE or without the norms")
    elif len({layer.theta for layer in layers}) > 1:
        found.append(
            f"{key} with layers that differ in RoPE; train without the norms, or with "
            "layers.full_rope=true layers.full_rope_theta=null"
        )
    if any(layer.sinks for layer in layers):
        found.append(f"{key} with layers.sinks=true; train without one of the two")
    if attention.qk_norm_eps != config.norm_eps:
        found.append(
            f"model.attention.qk_norm_eps={attention.qk_norm_eps}: Qwen3 has one number for all "
            f"norms; train with model.attention.qk_norm_eps={config.norm_eps}"
        )
    if config.mlp_bias:
        found.append(
            f"model.mlp_bias=true with {key}: Qwen3's MLP has no biases; train without one of the "
            "two"
        )
    return found


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration of this family describes.

    Raises:
        InteropError: Naming the key that kvlab's modules cannot follow.
    """
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    heads, key_value_heads = read.num_attention_heads, read.num_key_value_heads
    width = getattr(read, "head_dim", None) or read.hidden_size // heads
    arrangement = arranged(read_layers(read, weights))
    name = head_count_name(heads, key_value_heads)

    def attention(theta: float | None) -> GroupedQueryAttentionConfig:
        return GroupedQueryAttentionConfig(
            hidden_size=read.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=width,
            v_head_dim=width,
            qk_rope_head_dim=0 if theta is None else width,
            rope_theta=rope_theta_of(read) if theta is None else theta,
            attention_bias=bool(getattr(read, "attention_bias", False)),
            attention_dropout=float(read.attention_dropout or 0.0),
            use_qk_norm=read.model_type == "qwen3",
            qk_norm_eps=read.rms_norm_eps if read.model_type == "qwen3" else 1e-6,
        )

    own = attention(arrangement.theta)
    if read.model_type == "granite_swa":
        _require_no_multipliers(read, width)
    layers = arrangement.layers
    layers.attentions = {
        other: attention(theta).settings(name) for other, theta in arrangement.others.items()
    }
    return gpt_config(
        read,
        own,
        name,
        intermediate_size=read.intermediate_size,
        mlp_bias=bool(getattr(read, "mlp_bias", False)),
        norm_eps=read.rms_norm_eps,
        allow_nope=arrangement.theta is None,
        layers=layers,
    )


def _require_no_multipliers(read: Any, width: int) -> None:
    """Refuse a Granite whose embeddings, scores, blocks or logits are multiplied.

    Raises:
        InteropError: Naming the key.
    """
    for key, neutral in (_GRANITE_NEUTRAL | {"attention_multiplier": width**-0.5}).items():
        found = getattr(read, key)
        if not abs(found - neutral) <= 1e-6 * neutral:
            raise InteropError(
                f"config.json: {key} ({found}) must be {neutral:.6g}: kvlab's model has no such "
                "factor"
            )


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    idle = set()
    if read.model_type == "granite_swa":
        attentions = enumerate(layer_configs(config))
        idle = {sinks_name(idx) for idx, each in attentions if not _has_sinks(each)}
    return without_prefix({name: t for name, t in weights.items() if name not in idle})


def _has_sinks(attention: Any) -> bool:
    return bool(attention.attention_sinks)
