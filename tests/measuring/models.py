"""Small models that the tests of evaluation share."""

import torch

from modeling.config import GPTConfig
from modeling.gpt import GPT


def model(name="mqa", **changes):
    """A model of two layers with an attention of that name, in evaluation mode."""
    heads = {"hidden_size": 16, "num_attention_heads": 4, "v_head_dim": 8}
    attention = {
        "mha": {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 8},
        "mqa": {"num_key_value_heads": 1, "head_dim": 8, "qk_rope_head_dim": 8},
        "gqa": {"num_key_value_heads": 2, "head_dim": 8, "qk_rope_head_dim": 8},
        "mla": {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
        "mla_no_rope": {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 0},
    }[name]
    values = {
        "vocab_size": 50,
        "max_position_embeddings": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "initializer_range": 0.2,
        "position_embedding": "learned" if name == "mla_no_rope" else "none",
        "attention": {"name": name, **heads, **attention},
    }
    torch.manual_seed(0)
    return GPT(GPTConfig(**(values | changes))).eval()
