"""What a model card says of sizes, layers and cache, and of the class that holds the model."""

from collections.abc import Sequence
from typing import Any

from interop.families.layers import Layer, layers_of, window_of
from interop.stock import Stock
from modeling.accounting import cache_curve, num_parameters
from modeling.arrangement import layer_configs
from modeling.attention import SoftmaxAttentionConfig, attention_config
from modeling.attention.tied import TiedAttentionConfig
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
    layers = _layers(config)
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


def _layers(config: GPTConfig) -> list[Layer]:
    return layers_of(layer_configs(config))


def _named(layers: Sequence[int]) -> str:
    return f"layers {', '.join(map(str, layers))} (from 0)"


def cache_growth(config: GPTConfig) -> str:
    """Say how many bytes a token adds to the caches of all layers, in float32."""
    curve = cache_curve(config)
    if not curve.plateau:
        return f"{curve.slope:,}"
    return f"{curve.slope:,} up to {curve.plateau:,} tokens, then {curve.slope_beyond:,}"


def notes(stock: Stock, config: GPTConfig) -> list[str]:
    """Return what a user of the written folder should know."""
    found = [
        "The tokenizer adds no token by itself, and takes text that looks like the token that ends "
        "a document for text (`split_special_tokens`); pass its id, `eos_token_id`, for the token."
    ]
    if config.intra_document_mask:
        found.append(
            "A sequence must be one document: it was trained with attention within documents only "
            "(`intra_document_mask`), which no stock class does. kvlab computes one document just "
            "so."
        )
    if stock.config["model_type"] == "granite_swa" and not all(
        layer.sinks for layer in _layers(config)
    ):
        found.append(
            "The class has sinks in every layer; where the model has none they are -10000, which "
            "leaves every weight of the attention as it is."
        )
    if isinstance(attention_config(config.attention), TiedAttentionConfig):
        found.append(
            "Values are the keys before RoPE: `v_proj` is a copy of `k_proj` here, and whatever "
            "loads this folder caches both, twice what kvlab does. Training it further would tell "
            "them apart."
        )
    if stock.config["model_type"] == "deepseek_v4":
        stored = sum(tensor.numel() for tensor in stock.weights.values())
        dead = stored - num_parameters(config).total
        found.append(
            f"Of the class only the attention does something: {dead:,} of the stored numbers "
            "(hyper-connections of one stream, an expert of zeros, an identity) leave what passes "
            "them as it is. It caches the one head twice, as key and as value, which kvlab does "
            "not."
        )
    is_latent = stock.config["model_type"] in ("deepseek_v2", "deepseek_v3")
    if is_latent:
        found.append(
            "What an implementation caches is its own choice: kvlab and transformers 5 keep the "
            "latent and the rotated key, others may expand them to the keys and values of all "
            "heads, and then cache more than multi-head attention."
        )
    if is_latent and config.attention["qk_rope_head_dim"] == 0:
        found.append(
            "The class has no latent attention without RoPE: here its rotated part is 2 wide and "
            "all zeros, and queries are larger by sqrt((d + 2) / d) to make up for the divisor; "
            "it caches 2 elements more per token and layer than kvlab."
        )
    elif is_latent:
        found.append("RoPE's rows are in DeepSeek's interleaved order (`rope_interleave: true`).")
    if stock.config["model_type"] in ("gpt2", "gpt_bigcode") and not config.mlp_bias:
        found.append("Biases that the model does not have are zeros here.")
    return found
