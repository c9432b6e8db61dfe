"""A model of every kind that a class of transformers expresses, and what tests do with them."""

import torch

from interop.stock import to_stock
from modeling.config import GPTConfig, SamplingSettings
from modeling.generate import generate
from modeling.gpt import GPT
from tests.tiny_models import attention_fields

M, H, N, CONTEXT = 24, 4, 61, 48
END = 7
HEADS = {"hidden_size": M, "num_attention_heads": H}
# Heads of 8 are wider than hidden_size / num_attention_heads.
MHA, GQA, MQA = (attention_fields(name, width=M, heads=H) for name in ("mha", "gqa", "mqa"))
LATENT = attention_fields("mla", width=M, heads=H, qk_rope_head_dim=6, v_head_dim=10)
SHARED = HEADS | {
    **{"name": "shared_kv", "head_dim": 12, "v_head_dim": 12, "q_lora_rank": 14},
    "qk_rope_head_dim": 8,
}
NO_ROPE = {"qk_rope_head_dim": 0}
SIX = {"head_dim": 6, "v_head_dim": 6, "qk_rope_head_dim": 0}
NOPE = {"position_embedding": "none", "allow_nope": True}
CLASSIC = {
    "norm": "layer_norm",
    "norm_eps": 1e-5,
    "mlp": "gelu",
    "mlp_bias": True,
    "position_embedding": "learned",
}
BIASES = {"attention_bias": True}


def layers(name, **settings):
    """Four layers arranged."""
    return {"num_hidden_layers": 4, "layers": {"name": name, **settings}}


WINDOWS = {"window": 5, "full_every": 2}
NO_ROPE_THERE = {"no_rope": GQA | NO_ROPE}

# name: attention, other settings, class of transformers
EXPORTABLE = {
    "mha": (MHA, {}, "LlamaForCausalLM"),
    "gqa": (GQA, {"norm_eps": 1e-4}, "LlamaForCausalLM"),
    "mqa": (MQA | {"rope_theta": 500.0}, {"tie_word_embeddings": False}, "LlamaForCausalLM"),
    "gqa_biases": (GQA | BIASES, {"mlp_bias": True}, "LlamaForCausalLM"),
    "gqa_documents": (GQA, {"intra_document_mask": True}, "LlamaForCausalLM"),
    "gqa_qk_norm": (GQA | {"use_qk_norm": True} | BIASES, {}, "Qwen3ForCausalLM"),
    "mha_nope": (MHA | NO_ROPE, NOPE, "SmolLM3ForCausalLM"),
    "gqa_nope_biases": (GQA | NO_ROPE | BIASES, NOPE | {"mlp_bias": True}, "SmolLM3ForCausalLM"),
    "mha_odd": (MHA | {"hidden_size": 26}, {"hidden_size": 26}, "SmolLM3ForCausalLM"),
    "gqa_window_full": (
        GQA,
        layers("window_full", **WINDOWS, full_rope=False),
        "SmolLM3ForCausalLM",
    ),
    "mqa_window": (
        MQA | BIASES | {"rope_theta": 500.0},
        layers("window", window=2) | {"mlp_bias": True, "tie_word_embeddings": False},
        "SmolLM3ForCausalLM",
    ),
    "gqa_window_no_rope": (GQA | NO_ROPE, layers("window", window=5) | NOPE, "SmolLM3ForCausalLM"),
    "gqa_rope_pattern": (
        GQA,
        layers("rope_pattern", pattern=["own", "own", "no_rope"], attentions=NO_ROPE_THERE),
        "SmolLM3ForCausalLM",
    ),
    "gqa_qk_norm_windows": (
        GQA | {"use_qk_norm": True} | BIASES,
        layers("window_full", window=5, full_every=3),
        "Qwen3ForCausalLM",
    ),
    "gqa_sinks": (
        GQA,
        layers("window_full", **WINDOWS, full_rope=False, sinks=True),
        "GraniteSWAForCausalLM",
    ),
    "mha_window_sinks": (
        MHA | BIASES,
        layers("window", window=4, sinks=True) | {"mlp_bias": True},
        "GraniteSWAForCausalLM",
    ),
    "gqa_two_bases": (
        GQA,
        layers("window_full", window=100, full_every=2, full_rope_theta=1e6),
        "GraniteSWAForCausalLM",
    ),
    "gqa_pattern_and_windows": (
        GQA,
        layers("window_full", **WINDOWS, pattern=["own", "no_rope"], attentions=NO_ROPE_THERE),
        "SmolLM3ForCausalLM",
    ),
    "gqa_tied": (GQA | {"name": "gqa_tied"} | BIASES, {}, "LlamaForCausalLM"),
    "mqa_tied_windows": (
        MQA | {"name": "mqa_tied", "use_qk_norm": True},
        layers("window_full", **WINDOWS),
        "Qwen3ForCausalLM",
    ),
    "gqa_tied_sinks": (
        GQA | {"name": "gqa_tied"},
        layers("window_full", **WINDOWS, full_rope=False, sinks=True),
        "GraniteSWAForCausalLM",
    ),
    "classic_tied": (MQA | SIX | {"name": "mqa_tied"}, CLASSIC, "GPTBigCodeForCausalLM"),
    "mla": (LATENT, {}, "DeepseekV3ForCausalLM"),
    "mla_untied": (LATENT, {"tie_word_embeddings": False}, "DeepseekV3ForCausalLM"),
    "mla_query_latent": (
        LATENT | {"q_lora_rank": 14, "rope_theta": 500.0} | BIASES,
        {},
        "DeepseekV3ForCausalLM",
    ),
    "mla_mlp_biases": (LATENT, {"mlp_bias": True}, "DeepseekV2ForCausalLM"),
    "mla_nope": (LATENT | NO_ROPE | {"name": "mla_no_rope"}, NOPE, "DeepseekV3ForCausalLM"),
    "mla_nope_query_latent": (
        LATENT | NO_ROPE | BIASES | {"name": "mla_no_rope", "q_lora_rank": 14},
        NOPE,
        "DeepseekV3ForCausalLM",
    ),
    "mla_latent_scale": (
        LATENT | {"latent_scale": True, "q_lora_rank": 14},
        {},
        "DeepseekV3ForCausalLM",
    ),
    "shared_kv": (SHARED, {"intermediate_size": 32}, "DeepseekV4ForCausalLM"),
    # Of 44 dimensions 30 / 44 would be 29.
    "shared_kv_windows": (
        SHARED | {"head_dim": 44, "v_head_dim": 44, "qk_rope_head_dim": 30, "rope_theta": 500.0},
        layers("window", window=5, sinks=True)
        | {"intermediate_size": 40, "tie_word_embeddings": False},
        "DeepseekV4ForCausalLM",
    ),
    "classic_mha": (MHA | SIX | BIASES, CLASSIC, "GPT2LMHeadModel"),
    "classic_mha_no_biases": (
        MHA | SIX,
        CLASSIC | {"mlp_bias": False, "mlp": "relu", "tie_word_embeddings": False},
        "GPT2LMHeadModel",
    ),
    "classic_mqa": (MQA | SIX | BIASES, CLASSIC, "GPTBigCodeForCausalLM"),
    "classic_mqa_relu": (MQA | SIX, CLASSIC | {"mlp": "relu"}, "GPTBigCodeForCausalLM"),
}
# Whose stock weights are others than kvlab's, up to names and order.
CHANGED = {
    "mla_nope",
    "mla_nope_query_latent",
    "mla_latent_scale",
    "classic_mha_no_biases",
    "classic_mqa_relu",
    *("gqa_tied", "mqa_tied_windows", "gqa_tied_sinks", "classic_tied"),
}


def gpt_config(attention, **changes):
    """A model of two layers."""
    values = {
        "vocab_size": N,
        "max_position_embeddings": CONTEXT,
        "hidden_size": M,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "intermediate_size": 33,
        "end_of_document_id": END,
        "attention": attention,
    }
    return GPTConfig(**(values | changes))


def config_of(name):
    attention, changes, _ = EXPORTABLE[name]
    return gpt_config(attention, **changes)


def randomised(module, std=0.4, seed=1):
    """Give every parameter large values without any symmetry; norms stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = "norm" in name or ".ln_" in name
            # Positions that outweigh tokens keep a greedy text from repeating one.
            scale = 8 * std if "positions" in name or "wpe" in name else std
            parameter.copy_(noise + 0.5 if is_norm else scale * (3.4 * noise - 1.7))
    return module.eval()


def random_gpt(config, dtype=torch.float64):
    """kvlab's model with such weights."""
    return randomised(GPT(config)).to(dtype)


def random_tokens(*shape, seed=3):
    """Tokens that end no document."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(END + 1, N, shape, generator=generator)


def stock_model(stock, dtype=torch.float64):
    """The model of transformers that holds these weights, and no other."""
    import transformers

    config = transformers.AutoConfig.for_model(**stock.config)
    model = getattr(transformers, stock.config["architectures"][0])(config).to(dtype)
    missing, surplus = model.load_state_dict(stock.weights, strict=False)
    assert not surplus
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


def stock_of(model):
    """What transformers' classes make of a model of kvlab."""
    dtype = model.embed_tokens.weight.dtype
    return stock_model(to_stock(model.config, model.state_dict()), dtype)


def greedy(model, prompt, new):
    """kvlab's own tokens."""
    steps = generate(model, prompt, new, SamplingSettings(temperature=0.0), stop_token=END)
    return torch.stack(list(steps), dim=1)
