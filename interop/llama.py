"""Llama, and what differs from it in one thing: Qwen3, SmolLM3 and Mistral.

Llama: RoPE on whole heads, RMSNorm, SwiGLU. Qwen3 has norms of queries and keys besides, SmolLM3
layers without RoPE, Mistral Llama's weights. kvlab's modules have Llama's names.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interop.errors import InteropError
from interop.stock_config import (
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
from modeling.attention import GroupedQueryAttentionConfig
from modeling.config import GPTConfig


def to_stock(
    config: GPTConfig, attention: GroupedQueryAttentionConfig, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of Llama, Qwen3 or SmolLM3.

    Raises:
        InteropError: If none of them expresses the model.
    """
    refuse([*rope_block_problems(config), *_problems(config, attention)])
    keys = shared_keys(config, attention) | {
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
    }
    if attention.use_qk_norm:
        keys |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
        keys |= {"use_sliding_window": False}
    elif attention.qk_rope_head_dim == 0:
        keys |= {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
        keys |= {"mlp_bias": config.mlp_bias, "use_sliding_window": False}
        keys |= {"no_rope_layers": [0] * config.num_hidden_layers}
    else:
        keys |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        keys |= {"mlp_bias": config.mlp_bias}
    return keys, with_prefix(weights)


def _problems(config: GPTConfig, attention: GroupedQueryAttentionConfig) -> list[str]:
    found = []
    d, r, v = attention.head_dim, attention.qk_rope_head_dim, attention.v_head_dim
    if 0 < r < d:
        found.append(
            f"model.attention.qk_rope_head_dim={r}: RoPE on a part of each head; train with "
            f"model.attention.qk_rope_head_dim={d}, the whole head"
        )
    if v != d:
        found.append(
            f"model.attention.v_head_dim={v}: values of another width than queries and keys; train "
            f"with model.attention.v_head_dim={d}, or attention=mla"
        )
    if attention.use_qk_norm and r == 0:
        found.append(
            "model.attention.use_qk_norm=true without RoPE; train with RoPE or without the norms"
        )
    if attention.use_qk_norm and attention.qk_norm_eps != config.norm_eps:
        found.append(
            f"model.attention.qk_norm_eps={attention.qk_norm_eps}: Qwen3 has one number for all "
            f"norms; train with model.attention.qk_norm_eps={config.norm_eps}"
        )
    if attention.use_qk_norm and config.mlp_bias:
        found.append(
            "model.mlp_bias=true with model.attention.use_qk_norm=true: Qwen3's MLP has no biases; "
            "train without one of the two"
        )
    if r == d and not attention.use_qk_norm and config.hidden_size % config.num_attention_heads:
        found.append(
            f"model.hidden_size={config.hidden_size}: Llama's must be a multiple of "
            f"num_attention_heads ({config.num_attention_heads}); train with one that is"
        )
    return found


def read_config(read: Any) -> GPTConfig:
    """Return the model that a configuration of this family describes.

    Raises:
        InteropError: Naming the key that kvlab's modules cannot follow.
    """
    require(read, "hidden_act", "silu", "kvlab's gated MLP is SwiGLU")
    _require_whole_context(read)
    heads, key_value_heads = read.num_attention_heads, read.num_key_value_heads
    width = getattr(read, "head_dim", None) or read.hidden_size // heads
    attention = GroupedQueryAttentionConfig(
        hidden_size=read.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=width,
        v_head_dim=width,
        qk_rope_head_dim=width if _has_rope(read) else 0,
        rope_theta=rope_theta_of(read),
        attention_bias=bool(getattr(read, "attention_bias", False)),
        attention_dropout=float(read.attention_dropout or 0.0),
        use_qk_norm=read.model_type == "qwen3",
        qk_norm_eps=read.rms_norm_eps if read.model_type == "qwen3" else 1e-6,
    )
    return gpt_config(
        read,
        attention,
        head_count_name(heads, key_value_heads),
        intermediate_size=read.intermediate_size,
        mlp_bias=bool(getattr(read, "mlp_bias", False)),
        norm_eps=read.rms_norm_eps,
        allow_nope=not _has_rope(read),
    )


def _require_whole_context(read: Any) -> None:
    """Refuse layers that see a window of the text only.

    Raises:
        InteropError: Naming the key.
    """
    why = "kvlab's attention sees the whole text"
    if getattr(read, "use_sliding_window", True):  # Mistral has no such key
        require(read, "sliding_window", None, why)
    kinds = getattr(read, "layer_types", None) or []
    if any(kind != "full_attention" for kind in kinds):
        raise InteropError(f"config.json: layer_types must all be full_attention: {why}")


def _has_rope(read: Any) -> bool:
    """Tell whether the layers have RoPE.

    Raises:
        InteropError: If some do.
    """
    if read.model_type != "smollm3":
        return True
    layers = [bool(has) for has in read.no_rope_layers[: read.num_hidden_layers]]
    if len(layers) < read.num_hidden_layers or len(set(layers)) > 1:
        raise InteropError(
            "config.json: no_rope_layers must be 1 for all layers or 0 for all: kvlab's layers are "
            "alike"
        )
    return layers[0]


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    del read, config
    return without_prefix(weights)
