"""Small models of every arrangement, which the tests of features share."""

import torch

from modeling.config import GPTConfig
from modeling.contract import randomise
from modeling.gpt import GPT

WIDTH, CONTEXT, VOCABULARY = 32, 24, 50
HEADS = {"hidden_size": WIDTH, "num_attention_heads": 4, "v_head_dim": 8}
GROUPED = HEADS | {"head_dim": 8, "qk_rope_head_dim": 8}
LATENT = HEADS | {"kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
ATTENTIONS = {
    "mha": GROUPED | {"name": "mha", "num_key_value_heads": 4},
    "mqa": GROUPED | {"name": "mqa", "num_key_value_heads": 1},
    "gqa": GROUPED | {"name": "gqa", "num_key_value_heads": 2},
    "mla": LATENT | {"name": "mla"},
    "mla_no_rope": LATENT | {"name": "mla_no_rope", "qk_rope_head_dim": 0},
}
WINDOW = 3
ARRANGEMENTS = {
    "window_full": {"window": WINDOW, "full_every": 2, "full_rope": False},
    "window": {"window": WINDOW},
    "sinks": {"window": WINDOW, "full_every": 2, "full_rope_theta": 1e5, "sinks": True},
    "shared_pairs": {"share": "pairs"},
    "shared_upper": {"share": "upper"},
    "shared_last": {"share": "last", "window": WINDOW, "full_every": 2},
    "source": {"source": [0, 0, 0, 3]},
    "pattern": {
        "window": WINDOW,
        "full_every": 2,
        "pattern": ["own", "mqa"],
        "attentions": {"mqa": ATTENTIONS["mqa"]},
    },
}
EACH = [
    *(("gqa", arrangement) for arrangement in ARRANGEMENTS),
    *(("mla", name) for name in ("window_full", "sinks", "shared_pairs", "shared_last", "pattern")),
    *(("mha", "sinks"), ("mqa", "shared_last"), ("mla_no_rope", "window")),
]
"""Attention and arrangement; each arrangement with keys and values, and most with latents."""


def config_of(attention, arrangement, /, **changes):
    """A model of four layers, with learned positions where there is no RoPE."""
    values = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "tie_word_embeddings": False,  # or the likeliest token is the last one
        "position_embedding": "learned" if attention == "mla_no_rope" else "none",
        "attention": dict(ATTENTIONS[attention]),
        "layers": {"name": arrangement, **ARRANGEMENTS.get(arrangement, {})},
    }
    return GPTConfig(**(values | changes))


def model_of(attention, arrangement, /, **changes):
    """That model in evaluation mode, with weights that no two heads share, and sinks."""
    torch.manual_seed(0)
    return randomise(GPT(config_of(attention, arrangement, **changes)), std=0.4).eval()
