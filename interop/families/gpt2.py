"""GPT-2, and GPTBigCode where one key-value head serves all queries.

LayerNorm, GELU or ReLU, and positions that are learned at the input. Queries, keys and values are
one projection; GPT-2 stores its projections transposed. Both have biases everywhere: those that a
model lacks are zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interop.families.config_json import gpt_config, head_count_name, require, unlike, written
from interop.families.weights import WeightTable
from modeling.attention import GroupedQueryAttentionConfig
from modeling.config import GPTConfig

# Of kvlab's model, and of config.json.
_FIELDS = {
    **{name: name for name in ("vocab_size", "tie_word_embeddings", "initializer_range")},
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "mlp": "activation_function",
    "norm_eps": "layer_norm_epsilon",
}
_JOINED = "attn.c_attn"
_PROJECTIONS = (_JOINED, "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
# Of projections that are one: their names are those of the class after the joining.
_WEIGHTS = WeightTable(
    prefix="transformer.",
    names={
        "layers.": "h.",
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.o_proj": "attn.c_proj",
        "self_attn.qkv_proj": _JOINED,
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
        "norm.": "ln_f.",
    },
)


def write(
    config: GPTConfig,
    attentions: Sequence[GroupedQueryAttentionConfig],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and weights of GPT-2 or GPTBigCode."""
    attention = attentions[0]
    is_multi_head = attention.num_key_value_heads == config.num_attention_heads
    keys = written(
        config,
        _FIELDS,
        # n_positions by its older name, which engines that read config.json themselves ask for.
        n_ctx=config.max_position_embeddings,
        attn_pdrop=attention.attention_dropout,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        **({"model_type": "gpt2"} if is_multi_head else _MULTI_QUERY),
    )
    found = {}
    for name, tensor in _WEIGHTS.to_theirs(_joined(config, weights)).items():
        module, _, kind = name.rpartition(".")
        is_projection = module.endswith(_PROJECTIONS)
        is_transposed = is_projection and is_multi_head and kind == "weight"
        found[name] = tensor.t().contiguous() if is_transposed else tensor
        if is_projection and kind == "weight":
            found.setdefault(f"{module}.bias", tensor.new_zeros(tensor.shape[0]))
    return keys, found


_MULTI_QUERY = {"model_type": "gpt_bigcode", "multi_query": True}


def problems(config: GPTConfig, attentions: Sequence[GroupedQueryAttentionConfig]) -> list[str]:
    """Return why neither expresses a model."""
    attention, found = attentions[0], []
    if any(each.sliding_window is not None for each in attentions):
        found.append(
            f"layers.window={config.layers.window} with positions that are learned at the input: "
            "GPT-2's layers see all tokens; train with layers=uniform, or with RoPE and "
            "block=modern"
        )
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
    key, width = "model.attention.head_dim", config.hidden_size // config.num_attention_heads
    why = "GPT-2's heads are hidden_size / num_attention_heads wide"
    found += unlike(key, attention.head_dim, width, why)
    key, why = "model.attention.v_head_dim", "values of another width than queries and keys"
    return found + unlike(key, attention.v_head_dim, attention.head_dim, why)


def _joined(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict with queries, keys and values of a layer in one projection."""
    found = dict(weights)
    for name, queries in weights.items():
        if ".q_proj." in name:
            others = (found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "kv")
            found[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat([queries, *others])
            del found[name]
    return found


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
    heads = read.num_attention_heads
    width, key_value_heads = read.hidden_size // heads, 1 if is_grouped else heads
    attention = GroupedQueryAttentionConfig(
        hidden_size=read.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=width,
        v_head_dim=width,
        qk_rope_head_dim=0,
        attention_bias=True,
        attention_dropout=float(read.attn_pdrop),
    )
    return gpt_config(
        *(read, _FIELDS, attention, head_count_name(heads, key_value_heads)),
        intermediate_size=read.n_inner or 4 * read.hidden_size,
        mlp_bias=True,
        norm="layer_norm",
        position_embedding="learned",
    )


def read_weights(read: Any, config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kvlab's state dict."""
    is_transposed = read.model_type == "gpt2"
    found = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        is_matrix = kind == "weight" and module.endswith(_PROJECTIONS)
        found[name] = tensor.t().contiguous() if is_matrix and is_transposed else tensor
    ours = {}
    for name, tensor in _WEIGHTS.to_ours(found).items():
        if ".qkv_proj." not in name:
            ours[name] = tensor
            continue
        m = config.hidden_size
        width = (tensor.shape[0] - m) // 2
        for part, some in zip("qkv", tensor.split([m, width, width]), strict=True):
            ours[name.replace(".qkv_proj.", f".{part}_proj.")] = some.contiguous()
    return ours
