"""What a model card says of a model's sizes, its layers and its cache."""

from collections.abc import Sequence
from typing import Any

from interop.layers import layers_of, window_of
from modeling.accounting import cache_curve
from modeling.arrangement import layer_configs
from modeling.attention import SoftmaxAttentionConfig, attention_config
from modeling.config import GPTConfig


def model_facts(config: GPTConfig) -> dict[str, Any]:
    """Return the sizes of a model, its attention, and how its layers differ."""
    attention = attention_config(config.attention)
    assert isinstance(attention, SoftmaxAttentionConfig)
    facts: dict[str, Any] = {
        "layers, width, MLP": f"{config.num_hidden_layers}, {config.hidden_size}, "
        f"{config.intermediate_size} ({config.mlp}, {config.norm})",
        "context": f"{config.max_position_embeddings:,} tokens",
        "vocabulary": f"{config.vocab_size or 0:,}",
        "attention": config.attention["name"],
        "arrangement of the layers": config.layers.name,
    }
    widths = (
        *("num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank"),
        *("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    )
    facts |= {key: getattr(attention, key) for key in widths if hasattr(attention, key)}
    return facts | _layer_facts(config)


def _layer_facts(config: GPTConfig) -> dict[str, Any]:
    """Return what differs from layer to layer: windows, positions and sinks."""
    layers = layers_of(
        [each for each in layer_configs(config) if isinstance(each, SoftmaxAttentionConfig)]
    )
    window = window_of(layers)
    positions = [
        "none" if layer.theta is None else f"RoPE, theta {layer.theta:g}" for layer in layers
    ]
    facts: dict[str, Any] = {}
    if window is not None:
        full = [idx for idx, layer in enumerate(layers) if layer.window is None]
        all_seen = f"; {_named(full)} see all tokens" if full else ""
        facts["windows"] = f"the newest {window:,} tokens, the query's own included{all_seen}"
        sinks = any(layer.sinks for layer in layers)
        facts["sinks"] = "one per head of the layers with a window" if sinks else "none"
    if config.position_embedding == "learned":
        facts["positions"] = "learned"
    elif len(set(positions)) == 1:
        facts["positions"] = positions[0]
    else:
        for kind in dict.fromkeys(positions):
            of = [idx for idx, each in enumerate(positions) if each == kind]
            facts[f"positions in {_named(of)}"] = kind
    return facts


def _named(layers: Sequence[int]) -> str:
    return f"layers {', '.join(map(str, layers))} (from 0)"


def cache_growth(config: GPTConfig) -> str:
    """Say how many bytes a token adds to the caches of all layers, in float32."""
    curve = cache_curve(config)
    if not curve.plateau:
        return f"{curve.slope:,}"
    return f"{curve.slope:,} up to {curve.plateau:,} tokens, then {curve.slope_beyond:,}"
