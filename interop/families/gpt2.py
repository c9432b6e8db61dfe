"""GPT-2, and GPTBigCode where one key-value head serves all queries.

LayerNorm, GELU or ReLU, and positions that are learned at the input. Queries, keys and values are
one projection; GPT-2 stores its projections transposed. Both have biases everywhere: those that a
model lacks are zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interop.families.config_json import common_keys, gpt_config, head_count_name, refuse, require
from interop.families.layers import arrangement_problems
from modeling.attention import GroupedQueryAttentionConfig
from modeling.config import GPTConfig

# Of kvlab, and of transformers.
_WHOLE = {
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "norm": "ln_f",
}
_IN_A_LAYER = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def to_stock(
    config: GPTConfig,
    attentions: Sequence[GroupedQueryAttentionConfig],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of GPT-2 or GPTBigCode.

    Args:
        config: The model.
        attentions: One a layer.
        weights: Its state dict.

    Raises:
        InteropError: If they do not express the model.
    """
    attention = attentions[0]
    problems = arrangement_problems(config, attentions)
    if any(each.sliding_window is not None for each in attentions):
        problems.append(
            f"layers.window={config.layers.window} with positions that are learned at the input: "
            "GPT-2's layers see all tokens; train with layers=uniform, or with RoPE and "
            "block=modern"
        )
    refuse([*problems, *_problems(config, attention)])
    is_multi_head = attention.num_key_value_heads == config.num_attention_heads
    keys = common_keys(config) | {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        # The same by its older name, which engines that read config.json themselves ask for.
        "n_ctx": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "activation_function": config.mlp,
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": attention.attention_dropout,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    if is_multi_head:
        keys |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    else:
        keys |= {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode"}
        keys |= {"multi_query": True}
    return keys, _joined(config, weights, is_transposed=is_multi_head)


def _problems(config: GPTConfig, attention: GroupedQueryAttentionConfig) -> list[str]:
    found = []
    if config.mlp == "swiglu":
        found.append(
            "model.mlp=swiglu with positions that are learned at the input; train with RoPE "
            "(attention=mha, mqa, gqa or mla), or GPT-2's block (block=classic attention=mha)"
        )
    if attention.num_key_value_heads not in (1, config.num_attention_heads):
        found.append(
            f"model.attention.num_key_value_heads={attention.num_key_value_heads}: GPT-2's block "
            "with grouped queries; train it with attention=mha or mqa, or gqa with RoPE"
        )
    if attention.qk_rope_head_dim or attention.use_qk_norm:
        found.append(
            "RoPE or norms of queries and keys, with positions that are learned at the input; "
            "train with model.attention.qk_rope_head_dim=0 model.attention.use_qk_norm=false, or "
            "without learned positions"
        )
    if attention.head_dim * config.num_attention_heads != config.hidden_size:
        found.append(
            f"model.attention.head_dim={attention.head_dim}: GPT-2's heads are hidden_size / "
            "num_attention_heads wide; train with that"
        )
    if attention.v_head_dim != attention.head_dim:
        found.append(
            f"model.attention.v_head_dim={attention.v_head_dim}: values of another width than "
            f"queries and keys; train with model.attention.v_head_dim={attention.head_dim}"
        )
    return found


def _joined(
    config: GPTConfig, weights: Mapping[str, Tensor], is_transposed: bool
) -> dict[str, Tensor]:
    """Return the state dict of transformers, with zeros for the biases that are not there."""
    found = {}
    for ours, theirs in _names(config).items():
        for kind in ("weight", "bias"):
            parts = [f"{name}.{kind}" for name in ours]
            if parts[0] in weights:
                tensor = torch.cat([weights[part] for part in parts])
            elif kind == "bias" and theirs.endswith(_PROJECTIONS):
                rows = sum(weights[f"{name}.weight"].shape[0] for name in ours)
                tensor = weights[f"{ours[0]}.weight"].new_zeros(rows)
            else:
                continue
            is_matrix = kind == "weight" and theirs.endswith(_PROJECTIONS)
            found[f"{theirs}.{kind}"] = (
                tensor.t().contiguous() if is_matrix and is_transposed else tensor
            )
    return found


def _names(config: GPTConfig) -> dict[tuple[str, ...], str]:
    """Return which modules of kvlab become which of transformers."""
    found: dict[tuple[str, ...], str] = {
        (ours,): f"transformer.{theirs}" for ours, theirs in _WHOLE.items()
    }
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        found |= {(f"{ours}.{a}",): f"{theirs}.{b}" for a, b in _IN_A_LAYER.items()}
        queries, keys, values = (f"{ours}.self_attn.{part}_proj" for part in "qkv")
        found[queries, keys, values] = f"{theirs}.attn.c_attn"
    return found | {("lm_head",): "lm_head"}


def read_config(read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
    """Return the model that a configuration of this family describes.

    Dropout of embeddings and of residuals, in training only, is left out.

    Raises:
        InteropError: Naming the key that kvlab's modules cannot follow.
    """
    del weights
    require(read, "scale_attn_weights", True, "kvlab's attention divides by sqrt(head_dim)")
    require(read, "scale_attn_by_inverse_layer_idx", False, "kvlab's scores are scaled alike")
    require(read, "add_cross_attention", False, "kvlab's model reads one text")
    if read.activation_function != "relu":
        require(read, "activation_function", "gelu", "kvlab's MLP has the exact GELU, or ReLU")
    is_grouped = read.model_type == "gpt_bigcode"
    if is_grouped:
        require(read, "multi_query", True, "its layout of several key-value heads is another")
    width = read.hidden_size // read.num_attention_heads
    key_value_heads = 1 if is_grouped else read.num_attention_heads
    attention = GroupedQueryAttentionConfig(
        hidden_size=read.hidden_size,
        num_attention_heads=read.num_attention_heads,
        num_key_value_heads=key_value_heads,
        head_dim=width,
        v_head_dim=width,
        qk_rope_head_dim=0,
        attention_bias=True,
        attention_dropout=float(read.attn_pdrop),
    )
    return gpt_config(
        read,
        attention,
        head_count_name(read.num_attention_heads, key_value_heads),
        intermediate_size=read.n_inner or 4 * read.hidden_size,
        mlp=read.activation_function,
        mlp_bias=True,
        norm="layer_norm",
        norm_eps=read.layer_norm_epsilon,
        position_embedding="learned",
    )


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    is_transposed = read.model_type == "gpt2"
    found = {}
    for ours, theirs in _names(config).items():
        for kind in ("weight", "bias"):
            tensor = weights.get(f"{theirs}.{kind}")
            if tensor is None:
                continue
            if is_transposed and kind == "weight" and theirs.endswith(_PROJECTIONS):
                tensor = tensor.t()
            sizes = _rows(config, len(ours), tensor)
            parts = tensor.split(sizes)
            for name, part in zip(ours, parts, strict=True):
                found[f"{name}.{kind}"] = part.contiguous()
    return found


def _rows(config: GPTConfig, parts: int, tensor: Tensor) -> list[int]:
    """Return how many rows the projections have that one of transformers joins."""
    if parts == 1:
        return [tensor.shape[0]]
    m = config.hidden_size
    width = (tensor.shape[0] - m) // 2
    return [m, width, width]
