"""One builder of the small models that tests train, save and score.

The attentions that `modeling` is tested with are each class's own example (tests/modeling/tiny.py).
"""

import torch

from modeling.config import GPTConfig
from modeling.gpt import GPT


def attention_fields(name="mha", *, width=16, heads=2, head=8, **changes):
    """An attention's fields: key and value heads of `head` dimensions, or a latent."""
    fields = {"name": name, "hidden_size": width, "num_attention_heads": heads, "v_head_dim": head}
    if name.startswith("mla"):
        rope = 0 if name == "mla_no_rope" else head // 2
        fields |= {"kv_lora_rank": 12, "qk_nope_head_dim": head, "qk_rope_head_dim": rope}
    else:
        groups = {"mha": heads, "gqa": heads // 2, "mqa": 1}[name]
        fields |= {"num_key_value_heads": groups, "head_dim": head, "qk_rope_head_dim": head}
    return fields | changes


def model_fields(attention="mha", /, *, width=16, heads=2, head=8, of_attention=None, **changes):
    """A model's fields, one narrow layer: learned positions where the attention has no RoPE."""
    fields = attention_fields(attention, width=width, heads=heads, head=head, **of_attention or {})
    return {
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "intermediate_size": width * 3 // 2,
        "position_embedding": "none" if fields["qk_rope_head_dim"] else "learned",
        "attention": fields,
    } | changes


def tiny_config(attention="mha", /, **changes):
    """That configuration."""
    return GPTConfig(**model_fields(attention, **changes))


def tiny_model(attention="mha", /, **changes):
    """That model in evaluation mode, of seed 0."""
    torch.manual_seed(0)
    return GPT(tiny_config(attention, **changes)).eval()


def scored_model(attention="mqa", /, **changes):
    """A model of two layers and a context of eight tokens, for what is scored token by token."""
    latent = {"kv_lora_rank": 8} if attention.startswith("mla") else None
    given = {"num_hidden_layers": 2, "max_position_embeddings": 8, "initializer_range": 0.2}
    return tiny_model(attention, heads=4, of_attention=latent, **(given | changes))
