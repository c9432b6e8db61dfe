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
    FIELDS,
    attention_fields,
    gpt_config,
    head_count_name,
    require,
    rope_block_problems,
    rope_theta_of,
    unlike,
    written_as_llama,
)
from interop.families.layers import (
    NO_SINK,
    Layer,
    arranged,
    layers_of,
    read_layers,
    sinks_name,
    window_of,
)
from interop.families.weights import WeightTable
from modeling.arrangement import layer_configs
from modeling.attention import GroupedQueryAttentionConfig
from modeling.config import GPTConfig

_WEIGHTS = WeightTable()
# What Granite's class is given where no layer has a window: its own default.
_ANY_WINDOW = 128
_GRANITE_NEUTRAL = dict.fromkeys(
    ("embedding_multiplier", "logits_scaling", "residual_multiplier"), 1.0
)


def write(
    config: GPTConfig,
    attentions: Sequence[GroupedQueryAttentionConfig],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of Llama, Qwen3, SmolLM3 or Granite."""
    layers = layers_of(attentions)
    attention = next((each for each in attentions if each.qk_rope_head_dim), attentions[0])
    keys = written_as_llama(config, attention, ("num_key_value_heads", "head_dim"))
    window = window_of(layers)
    windows = {
        "layer_types": [layer.kind for layer in layers],
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }
    ours = _WEIGHTS.to_theirs(weights)
    if attention.use_qk_norm:
        return keys | windows | {"model_type": "qwen3"}, ours
    keys["mlp_bias"] = config.mlp_bias
    if any(layer.sinks for layer in layers) or len(_bases(layers)) > 1:
        del windows["use_sliding_window"]
        of_granite = _GRANITE_NEUTRAL | {
            "model_type": "granite_swa",
            "attention_multiplier": attention.head_dim**-0.5,
            "layer_rope_theta": [layer.theta or 0 for layer in layers],
            "sliding_window": window or _ANY_WINDOW,
        }
        return keys | windows | of_granite, _with_sinks(ours, attentions)
    has_odd_heads = config.hidden_size % config.num_attention_heads  # which Llama's class refuses
    if window is not None or has_odd_heads or any(layer.theta is None for layer in layers):
        no_rope = {"no_rope_layers": [int(layer.theta is not None) for layer in layers]}
        return keys | windows | no_rope | {"model_type": "smollm3"}, ours
    return keys | {"model_type": "llama"}, ours


def _bases(layers: Sequence[Layer]) -> set[float]:
    """Return the different bases of RoPE."""
    return {layer.theta for layer in layers if layer.theta is not None}


def _with_sinks(
    weights: Mapping[str, Tensor], attentions: Sequence[GroupedQueryAttentionConfig]
) -> dict[str, Tensor]:
    """Return a state dict in which every layer has sinks, without effect where it had none."""
    embedding = weights["model.embed_tokens.weight"]
    return {
        sinks_name(idx): embedding.new_full((attention.num_attention_heads,), NO_SINK)
        for idx, attention in enumerate(attentions)
    } | dict(weights)


def problems(config: GPTConfig, attentions: Sequence[GroupedQueryAttentionConfig]) -> list[str]:
    """Return why none of them expresses a model."""
    layers, found = layers_of(attentions), rope_block_problems(config)
    attention = attentions[0]
    d = attention.head_dim
    for r in sorted({each.qk_rope_head_dim for each in attentions} - {0, d}):
        found += unlike("model.attention.qk_rope_head_dim", r, d, "RoPE on a part of each head")
    found += unlike(
        *("model.attention.v_head_dim", attention.v_head_dim, d),
        "values of another width than queries and keys, which only attention=mla may have",
    )
    if not attention.use_qk_norm:
        return found
    # Qwen3 has norms of queries and keys, and not all else.
    key = "model.attention.use_qk_norm=true"
    if not _bases(layers):
        found.append(f"{key} without RoPE; train with RoPE or without the norms")
    elif len({layer.theta for layer in layers}) > 1:
        found.append(
            f"{key} with layers that differ in RoPE; train without the norms, or with "
            "layers.full_rope=true layers.full_rope_theta=null"
        )
    for is_there, other in (
        (any(layer.sinks for layer in layers), "layers.sinks=true"),
        (config.mlp_bias, "model.mlp_bias=true"),
    ):
        if is_there:
            found.append(f"{key} with {other}; train without one of the two")
    why = "Qwen3 has one number for all norms"
    return found + unlike(
        "model.attention.qk_norm_eps", attention.qk_norm_eps, config.norm_eps, why
    )


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration describes."""
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    width = getattr(read, "head_dim", None) or read.hidden_size // read.num_attention_heads
    arrangement = arranged(read_layers(read, weights))
    name = head_count_name(read.num_attention_heads, read.num_key_value_heads)
    has_norms = read.model_type == "qwen3"

    def attention(theta: float | None) -> GroupedQueryAttentionConfig:
        return GroupedQueryAttentionConfig(
            **attention_fields(read, ("num_key_value_heads",)),
            head_dim=width,
            v_head_dim=width,
            qk_rope_head_dim=0 if theta is None else width,
            rope_theta=rope_theta_of(read) if theta is None else theta,
            use_qk_norm=has_norms,
            qk_norm_eps=read.rms_norm_eps if has_norms else 1e-6,
        )

    own = attention(arrangement.theta)
    if read.model_type == "granite_swa":
        _require_no_multipliers(read, width)
    layers = arrangement.layers
    layers.attentions = {
        other: attention(theta).settings(name) for other, theta in arrangement.others.items()
    }
    return gpt_config(read, FIELDS, own, name, allow_nope=arrangement.theta is None, layers=layers)


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
    idle: set[str] = set()
    if read.model_type == "granite_swa":
        layers = layers_of(layer_configs(config))
        idle = {sinks_name(idx) for idx, layer in enumerate(layers) if not layer.sinks}
    return _WEIGHTS.to_ours({name: t for name, t in weights.items() if name not in idle})
