"""Small models of every arrangement, which the tests of features share."""

import torch

from modeling.contract import randomise
from modeling.gpt import GPT
from tests.tiny_models import attention_fields, tiny_config

WIDTH, CONTEXT, VOCABULARY = 32, 24, 50
ATTENTIONS = {
    name: attention_fields(name, width=WIDTH, heads=4)
    for name in ("mha", "mqa", "gqa", "mla", "mla_no_rope")
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
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,  # or the likeliest token is the last one
        "layers": {"name": arrangement, **ARRANGEMENTS.get(arrangement, {})},
    }
    return tiny_config(attention, width=WIDTH, heads=4, **(values | changes))


def model_of(attention, arrangement, /, **changes):
    """That model in evaluation mode, with weights that no two heads share, and sinks."""
    torch.manual_seed(0)
    return randomise(GPT(config_of(attention, arrangement, **changes)), std=0.4).eval()
