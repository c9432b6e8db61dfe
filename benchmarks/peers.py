"""Configurations of other frameworks' models with the dimensions of a kvlab configuration.

`model` is always the fields of a kvlab `GPTConfig`, as `dataclasses.asdict` gives them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litgpt import Config
    from transformers import DeepseekV3Config, LlamaConfig

Model = dict[str, Any]


def llama_config(model: Model) -> "LlamaConfig":
    """Return the Llama of transformers: MHA, GQA and MQA."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **_transformers_fields(model),
        num_key_value_heads=model["attention"]["num_key_value_heads"],
        head_dim=model["attention"]["head_dim"],
    )


def deepseek_v3_config(model: Model) -> "DeepseekV3Config":
    """Return the DeepSeek-V3 of transformers with every layer dense: MLA."""
    from transformers import DeepseekV3Config

    attention = model["attention"]
    widths = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
    return DeepseekV3Config(
        **_transformers_fields(model),
        **{key: attention[key] for key in (*widths, "v_head_dim")},
        num_key_value_heads=model["num_attention_heads"],
        first_k_dense_replace=model["num_hidden_layers"],
        num_mtp_layers=0,
        # Its default, True, rearranges queries and keys first; False is kvlab's function.
        rope_interleave=False,
    )


def _transformers_fields(model: Model) -> dict[str, Any]:
    """Return what Llama's and DeepseekV3's configurations have in common with kvlab's."""
    same = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    same += ["num_attention_heads", "max_position_embeddings", "tie_word_embeddings"]
    return {key: model[key] for key in same} | {
        "rms_norm_eps": model["norm_eps"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model["attention"]["rope_theta"],
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "sdpa",
    }


def litgpt_config(model: Model, name: str, block_size: int) -> "Config":
    """Return the GPT of litgpt: MHA, GQA, MQA, or MLA with a query latent."""
    from litgpt import Config

    attention = model["attention"]
    is_latent = attention["name"] == "mla"
    latent = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim")
    return Config(
        name=name,
        block_size=block_size,
        n_layer=model["num_hidden_layers"],
        n_embd=model["hidden_size"],
        n_head=model["num_attention_heads"],
        n_query_groups=model["num_attention_heads"]
        if is_latent
        else attention["num_key_value_heads"],
        vocab_size=model["vocab_size"],
        padded_vocab_size=model["vocab_size"],
        intermediate_size=model["intermediate_size"],
        norm_class_name="RMSNorm",
        norm_eps=model["norm_eps"],
        mlp_class_name="LLaMAMLP",
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
        rope_base=int(attention["rope_theta"]),
        latent_attention={key: attention[key] for key in (*latent, "v_head_dim")}
        if is_latent
        else None,
    )


def query_latent_width(model: Model) -> int:
    """Return the width of a query latent that leaves the number of weights as it is.

    The MLA of litgpt always compresses its queries. With m h (d + r) / (m + h (d + r)) dimensions
    the two projections have as many weights, and so FLOPs, as one at full rank.
    """
    attention, m = model["attention"], model["hidden_size"]
    out = attention["num_attention_heads"] * (
        attention["qk_nope_head_dim"] + attention["qk_rope_head_dim"]
    )
    return round(m * out / (m + out))
