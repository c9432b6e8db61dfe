"""kvlab's modules and transformers' classes compute the same from the same weights."""

import dataclasses

import pytest
import torch
from exportable import (
    BIASES,
    CHANGED,
    CLASSIC,
    END,
    EXPORTABLE,
    GQA,
    LATENT,
    MHA,
    MQA,
    NO_ROPE,
    NOPE,
    SHARED,
    SIX,
    H,
    M,
    N,
    config_of,
    gpt_config,
    greedy,
    layers,
    random_gpt,
    random_tokens,
    randomised,
    stock_of,
)

from interop.errors import InteropError
from interop.stock import from_stock, to_stock
from modeling.arrangement import layer_configs
from modeling.attention import registry
from modeling.attention.grouped_query import GroupedQueryAttentionConfig
from modeling.gpt import GPT

needs_transformers = pytest.mark.slow  # which takes seconds to import


def assert_same_logits(actual, expected):
    """Compare, allowing for transformers' RMSNorm and RoPE, which compute in float32.

    Measured: at most 14 roundings of the largest logit.
    """
    atol = 64 * torch.finfo(torch.float32).eps * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def the_same_text(model, stock, seed):
    """Generate with both, each through its own cache, and return the tokens of it."""
    prompt = random_tokens(1, 5 + 7 * seed, seed=seed)
    expected = greedy(model, prompt, 24)
    found = stock.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=END,
    )
    found = found[:, prompt.shape[1] :]
    if END in found:
        found = found[:, : found[0].tolist().index(END)]
    assert torch.equal(found, expected)
    return expected[0].tolist()


@needs_transformers
@pytest.mark.parametrize("name", EXPORTABLE)
@torch.no_grad()
def test_a_stock_class_gives_the_same_logits_and_generates_the_same_text(name):
    # The experts of DeepSeek-V4's class compute in float32 at most.
    dtype = torch.float32 if name.startswith("shared_kv") else torch.float64
    model = random_gpt(config_of(name), dtype)
    stock = stock_of(model)
    assert type(stock).__name__ == EXPORTABLE[name][2]
    tokens = random_tokens(2, 40)
    expected = model(tokens)
    assert expected.std() > 0.3
    assert_same_logits(stock(tokens).logits, expected)
    seen = [token for seed in range(2) for token in the_same_text(model, stock, seed)]
    assert len(set(seen)) > 1


@needs_transformers
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in EXPORTABLE),
        *((name, torch.bfloat16) for name in ("gqa", "mla", "classic_mha")),
    ],
)
def test_there_and_back_gives_the_same_model(name, dtype):
    model = random_gpt(config_of(name), dtype)
    stock = to_stock(model.config, model.state_dict())
    config, weights = from_stock(stock.config, stock.weights)
    if name in CHANGED:
        again = GPT(config).eval()
        again.load_state_dict(weights)
        tokens = random_tokens(1, 20)
        with torch.no_grad():
            assert_same_logits(again(tokens), model.float()(tokens))
        return
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    ours = model.state_dict()
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[key], ours[key]) for key in ours)
    expected = dataclasses.replace(
        model.config, name=stock.config["model_type"], intra_document_mask=False
    )
    assert layer_configs(config) == layer_configs(expected)
    assert config.attention["name"] == expected.attention["name"]
    # What the pattern names is in layer_configs.
    found, expected = (
        dataclasses.replace(
            each, attention={}, layers=dataclasses.replace(each.layers, attentions={})
        )
        for each in (config, expected)
    )
    if name != "gqa_pattern_and_windows":  # which full_rope=false says more simply
        assert found == expected


F, S = "full_attention", "sliding_attention"


def kinds(fields):
    """What the layers of a class with windows are."""
    return fields.get("layer_types") or [S if fields["sliding_window"] else F]


LLAMA = {
    "vocab_size": N,
    "hidden_size": M,
    "intermediate_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": H,
    "max_position_embeddings": 48,
    "eos_token_id": END,
    "bos_token_id": END,
    "pad_token_id": None,
}
DEEPSEEK = LLAMA | {
    "kv_lora_rank": 12,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "num_key_value_heads": H,
    "first_k_dense_replace": 2,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
V4 = LLAMA | {
    **{"num_key_value_heads": 1, "n_routed_experts": 1, "n_shared_experts": 1, "hc_mult": 1},
    **{"hc_eps": 0.0, "o_groups": 1, "o_lora_rank": M, "swiglu_limit": 1e30, "head_dim": 8},
    **{"layer_types": [S] * 2, "mlp_layer_types": ["moe"] * 2, "moe_intermediate_size": 32},
}
GPT2 = {
    **{"vocab_size": N, "n_positions": 48, "n_embd": M, "n_layer": 2, "n_head": H},
    **{"activation_function": "gelu", "eos_token_id": END, "bos_token_id": END},
}


FOUR = LLAMA | ROPE | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 6}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "layer_types": [S, F] * 2}
GRANITE = FOUR | {
    **{"sliding_window": 5, "layer_types": [S, F] * 2},
    "attention_multiplier": (M / H) ** -0.5,
}
BASES = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen3", "smollm3"), LLAMA),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), DEEPSEEK),
    **{"granite_swa": GRANITE, "deepseek_v4": V4, "gpt2": GPT2, "gpt_bigcode": GPT2},
}
# name: model_type, what differs from its base, attention
OF_TRANSFORMERS = {
    "llama": ("llama", ROPE, "mha"),
    "llama_gqa": ("llama", {"num_key_value_heads": 2, "rope_theta": 500.0}, "gqa"),
    "llama_mqa": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
        "mqa",
    ),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}, "mha"),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": None}, "gqa"),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}, "gqa"),
    "smollm3": ("smollm3", {"num_key_value_heads": 2, "no_rope_layers": [0, 0]}, "gqa"),
    "smollm3_rope": ("smollm3", {"num_key_value_heads": 2, "no_rope_layers": [1, 1]}, "gqa"),
    "mistral_windows": ("mistral", {"num_key_value_heads": 2, "sliding_window": 5}, "gqa"),
    # Which transformers loads as Ministral.
    "mistral_kinds": ("mistral", FOUR | {"sliding_window": 5, "layer_types": [S, F] * 2}, "gqa"),
    "ministral": ("ministral", FOUR | {"sliding_window": 5, "layer_types": [S, S, F, S]}, "gqa"),
    "qwen3_windows": (
        "qwen3",
        FOUR | {"use_sliding_window": True, "sliding_window": 5, "layer_types": [S, F] * 2},
        "gqa",
    ),
    # As SmolLM3-3B is: no RoPE in every fourth layer, and no windows.
    "smollm3_some_rope": ("smollm3", FOUR, "gqa"),
    "smollm3_windows": ("smollm3", FOUR | WINDOWED | {"no_rope_layers": [1, 0, 1, 0]}, "gqa"),
    "smollm3_windows_pattern": (
        "smollm3",
        FOUR | WINDOWED | {"no_rope_layers": [0, 1, 1, 1, 9]},
        "gqa",
    ),
    "granite": ("granite_swa", {"layer_rope_theta": [1e4, 0] * 2}, "gqa"),
    "granite_bases": (
        "granite_swa",
        {"layer_rope_theta": [1e4, 1e6, 500.0, 0], "tie_word_embeddings": False},
        "gqa",
    ),
    "granite_full": ("granite_swa", {"layer_types": [F] * 4, "mlp_bias": True}, "gqa"),
    "deepseek_v3": ("deepseek_v3", ROPE, "mla"),
    "deepseek_v3_half_split": ("deepseek_v3", {"rope_interleave": False}, "mla"),
    "deepseek_v3_query_latent": ("deepseek_v3", {"q_lora_rank": 14, "attention_bias": True}, "mla"),
    "deepseek_v3_query_latent_half_split": (
        "deepseek_v3",
        {"q_lora_rank": 14, "attention_bias": True, "rope_interleave": False},
        "mla",
    ),
    "deepseek_v2": ("deepseek_v2", {"mlp_bias": True}, "mla"),
    "gpt2": ("gpt2", {}, "mha"),
    "gpt_bigcode": ("gpt_bigcode", {"n_inner": 33}, "mqa"),
}


@needs_transformers
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@torch.no_grad()
def test_kvlab_gives_the_logits_of_a_model_of_transformers(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, changes, attention = OF_TRANSFORMERS[name]
    fields = BASES[model_type] | changes
    # As transformers takes it from a folder.
    is_ministral = model_type == "mistral" and "layer_types" in fields
    built = AutoConfig.for_model("ministral" if is_ministral else model_type, **fields)
    theirs = randomised(AutoModelForCausalLM.from_config(built).double())
    if model_type == "granite_swa":
        for kind, block in zip(fields["layer_types"], theirs.model.layers, strict=True):
            if kind == F or name == "granite_bases":  # where sinks take nothing there are none
                block.self_attn.sinks.fill_(-1e4)
    # As it is in a folder, and as somebody with transformers 4 wrote it.
    named = {"model_type": model_type}
    for spelling in (built.to_dict() | named, fields | named):
        config, weights = from_stock(spelling, theirs.state_dict())
        assert config.attention["name"] == attention
        assert config.end_of_document_id == END
        ours = GPT(config).double().eval()
        ours.load_state_dict(weights)
        tokens = random_tokens(2, 40)
        expected = theirs(tokens).logits
        assert expected.std() > 0.3
        assert_same_logits(ours(tokens), expected)
    if "sliding_window" in fields:
        ours.config.end_of_document_id = theirs.generation_config.eos_token_id = END
        the_same_text(ours, theirs, seed=1)
        windows = {each.state().window for each in ours.attention_configs}
        assert windows == {fields["sliding_window"] if k == S else None for k in kinds(fields)}


NOT_EXPORTABLE = {
    "learned": (MHA | NO_ROPE, {"position_embedding": "learned"}, r"learned.*attention=mha, mqa"),
    "mla learned": (
        LATENT | NO_ROPE | {"name": "mla_no_rope"},
        {"position_embedding": "learned"},
        r"position_embedding=learned: positions that are learned at the input.*attention=mha",
    ),
    "mla classic": (LATENT, {"norm": "layer_norm"}, r"norm=layer_norm.*train with model.norm=rms_"),
    "layer norm": (MHA, {"norm": "layer_norm"}, r"model.norm=layer_norm.*block=classic"),
    "gelu": (MHA, {"mlp": "gelu"}, r"model.mlp=gelu.*model.mlp=swiglu"),
    "part": (MHA | {"qk_rope_head_dim": 4}, {}, r"qk_rope_head_dim=4: .*qk_rope_head_dim=8"),
    "values": (MHA | {"v_head_dim": 6}, {}, r"v_head_dim=6: .*v_head_dim=8"),
    "norm and no rope": (MHA | NO_ROPE | {"use_qk_norm": True}, NOPE, "use_qk_norm=true without"),
    "two eps": (MHA | {"use_qk_norm": True}, {"norm_eps": 1e-5}, "qk_norm_eps=1e-06.*=1e-05"),
    "norms and biases": (
        MHA | {"use_qk_norm": True},
        {"mlp_bias": True},
        "mlp_bias=true; train without",
    ),
    "latent eps": (LATENT | {"latent_norm_eps": 1e-5}, {}, "latent_norm_eps=1e-05.*=1e-06"),
    "classic gqa": (GQA | SIX | BIASES, CLASSIC, "num_key_value_heads=2: .*attention=mha or mqa"),
    "classic swiglu": (MHA | SIX, CLASSIC | {"mlp": "swiglu"}, "model.mlp=swiglu with positions"),
    "classic rope": (MHA | SIX | {"qk_rope_head_dim": 6}, CLASSIC, "RoPE or norms.*head_dim=0"),
    "classic width": (MHA | NO_ROPE, CLASSIC, "head_dim=8: .*hidden_size / num_attention_heads"),
    "classic values": (MHA | SIX | {"v_head_dim": 5}, CLASSIC, "v_head_dim=5: .*v_head_dim=6"),
    "norm and sinks": (
        GQA | {"use_qk_norm": True},
        layers("window", window=5, sinks=True),
        "use_qk_norm=true with layers.sinks=true; train without",
    ),
    "norm and bases": (
        GQA | {"use_qk_norm": True},
        layers("window_full", window=5, full_every=2, full_rope=False),
        "use_qk_norm=true with layers that differ in RoPE; train without the norms, or",
    ),
    "latent windows": (
        LATENT,
        layers("window_full", window=5, full_every=2, full_rope=False, sinks=True),
        "layers.window=5 with latent attention: .*train with layers=uniform, or attention=gqa",
    ),
    "latent rope": (
        LATENT,
        layers("x", pattern=["own", "flat"], attentions={"flat": LATENT | {"rope_theta": 9.0}}),
        "layers.pattern: latent attention whose layers differ in RoPE; train with",
    ),
    "shared": (GQA, layers("x", share="pairs"), "layers.share=pairs: .*Gemma 4.*layers=uniform"),
    "shared by a map": (
        LATENT,
        layers("x", source=[0, 0, 2, 2]),
        r"layers.source=\[0, 0, 2, 2\]: .*Mistral Large 4.*layers=uniform",
    ),
    "shared windows": (
        GQA | {"v_head_dim": 6},
        layers("x", share="last", window=1, full_every=2),
        "layers.share=last: .*; layers.window=1: .*layers.window=2.*; .*v_head_dim=6",
    ),
    "tied by a norm": (
        GQA | {"name": "gqa_tied", "kv_tie": "norm", "v_head_dim": 8},
        {},
        "model.attention.kv_tie=norm: .*kv_tie=plain",
    ),
    "classic tied by a norm": (
        MQA | SIX | {"name": "mqa_tied", "kv_tie": "norm"},
        CLASSIC,
        "model.attention.kv_tie=norm: .*kv_tie=plain",
    ),
    "shared without rope": (
        SHARED | NO_ROPE,
        NOPE,
        "attention=shared_kv without RoPE: .*qk_rope_head_dim=2 or more",
    ),
    "shared with full": (
        SHARED,
        layers("window_full", window=5, full_every=2),
        "layers=window_full with attention=shared_kv: .*layers=uniform or layers=window",
    ),
    "shared with biases": (
        SHARED | BIASES,
        {"mlp_bias": True, "norm_eps": 1e-5},
        "attention_bias=true: .*; model.mlp_bias=true: .*; model.intermediate_size=33 .*eps=1e-05",
    ),
    "mixed": (
        GQA,
        layers("x", pattern=["own", "mqa"], attentions={"mqa": MQA}),
        "layers.pattern: layers with different attentions; train with layers.pattern=null",
    ),
    "mixed forms": (
        GQA,
        layers("x", pattern=["own", "mla"], attentions={"mla": LATENT}),
        "layers.pattern: layers with different attentions",
    ),
    "classic windows": (
        MHA | SIX,
        CLASSIC | layers("window", window=5),
        "layers.window=5 with positions that are learned at the input: .*layers=uniform",
    ),
    "learned windows": (
        MHA | NO_ROPE,
        layers("window", window=5) | {"position_embedding": "learned"},
        "position_embedding=learned",
    ),
    "window of one": (MHA, layers("window", window=1), "layers.window=1: .*layers.window=2"),
}


@pytest.mark.parametrize("name", NOT_EXPORTABLE)
def test_what_no_stock_class_expresses_is_refused_with_a_way_out(name):
    attention, changes, message = NOT_EXPORTABLE[name]
    model = GPT(gpt_config(attention, **changes))
    with pytest.raises(InteropError, match=message) as caught:
        to_stock(model.config, model.state_dict())
    assert "\n" not in str(caught.value)


def test_an_attention_that_somebody_added_is_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Another(GroupedQueryAttentionConfig):
        """It may compute anything."""

    monkeypatch.setitem(registry._REGISTRY, "another", Another)
    model = GPT(gpt_config(MHA | {"name": "another"}))
    with pytest.raises(InteropError, match=r"name=another; train mha, mqa, gqa, gqa_tied, mla or"):
        to_stock(model.config, model.state_dict())


def test_all_that_cannot_be_expressed_is_named_at_once():
    model = GPT(gpt_config(MHA | {"qk_rope_head_dim": 4, "v_head_dim": 6}))
    with pytest.raises(InteropError, match=r"qk_rope_head_dim=4.*v_head_dim=6"):
        to_stock(model.config, model.state_dict())


@pytest.mark.parametrize("name", ["mla_nope", "mla_latent_scale"])
def test_latent_attention_whose_weights_are_changed_is_not_rounded_twice(name):
    model = GPT(config_of(name)).bfloat16()
    with pytest.raises(InteropError, match="bfloat16 would round again; set dtype=float32"):
        to_stock(model.config, model.state_dict())


def test_weights_of_another_model_are_refused():
    config, weights = config_of("gqa"), GPT(config_of("gqa")).state_dict()
    name = "layers.1.self_attn.k_proj.weight"
    for changed, message in (
        ({key: tensor for key, tensor in weights.items() if key != name}, f"{name}: missing"),
        (weights | {"more": torch.ones(1)}, "more: .*has none"),
        (weights | {name: torch.ones(3, M)}, rf"{name}: \[3, 24\], .*needs \[16, 24\]"),
        (weights | {name: weights[name].int()}, f"{name} are torch.int32"),
    ):
        with pytest.raises(InteropError, match=message):
            to_stock(config, changed)


# name: model_type, what differs from its base, message
NOT_IMPORTABLE = {
    "another family": ("llama", {"model_type": "gemma"}, "model_type .'gemma'.*llama, mistral"),
    "no family": ("llama", {"model_type": ["llama"]}, r"model_type .*llama"),
    "yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "rope_scaling.*yarn.*must be default",
    ),
    "old linear": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "linear.*must be default",
    ),
    "partial": (
        "llama",
        {"rope_parameters": ROPE["rope_parameters"] | {"partial_rotary_factor": 0.5}},
        r"partial_rotary_factor \(0.5",
    ),
    "older partial": ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor"),
    "theta": ("llama", {"rope_theta": "a"}, r"rope_theta \(a\) must be a number"),
    "activation": ("llama", {"hidden_act": "gelu"}, r"hidden_act \(gelu\) must be silu"),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "window of one": ("mistral", {"sliding_window": 1}, r"sliding_window \(1\) must be"),
    "no window": (
        "ministral",
        FOUR | {"sliding_window": None, "layer_types": [S] * 4},
        r"sliding_window \(None\) must be a whole number of at least 2",
    ),
    "llama window": ("llama", {"sliding_window": 5}, "sliding_window: Llama's class sees"),
    "llama kinds": ("llama", {"layer_types": [S, F]}, "layer_types: Llama's class sees"),
    "qwen window": (
        "qwen3",
        FOUR | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
        r"layer_types: the full_attention layers are \[0, 1, 2\], counted from 0; kvlab's are",
    ),
    "unused window": (
        "qwen3",
        {"layer_types": [S, F], "sliding_window": 5},
        "use_sliding_window is not true, but layer_types names",
    ),
    "unused window of smollm3": (
        "smollm3",
        FOUR | WINDOWED | {"use_sliding_window": False},
        "use_sliding_window is not true, but layer_types names",
    ),
    "chunks": (
        "granite_swa",
        {"layer_types": ["chunked_attention"] * 4},
        "layer_types: kvlab has no 'chunked_attention' layers",
    ),
    "kinds of other layers": ("ministral", FOUR | {"layer_types": [F]}, "layer_types|cannot read"),
    "granite as it is by default": (
        "granite_swa",
        {"layer_types": None},
        r"layer_types: the full_attention layers are \[0\]",
    ),
    "few bases": (
        "granite_swa",
        {"layer_rope_theta": [1e4]},
        "layer_rope_theta has 1 entries, and the model 4 layers",
    ),
    "a base": ("granite_swa", {"layer_rope_theta": [0.5] * 4}, r"rope_theta \(0.5\)"),
    **{
        key: ("granite_swa", {key: 2.0}, rf"{key} \(2.0\) must be")
        for key in ("embedding_multiplier", "logits_scaling", "residual_multiplier")
    },
    "a negative width": ("granite_swa", {"head_dim": -1}, "head_dim .-1. must be at"),
    "scores": ("granite_swa", {"attention_multiplier": 1.0}, "attention_multiplier"),
    "few": ("smollm3", {"no_rope_layers": [0]}, "transformers cannot read it"),
    "experts": ("deepseek_v3", {"first_k_dense_replace": 1}, "first_k_dense_replace"),
    "experts of v2": ("deepseek_v2", {"first_k_dense_replace": 0}, "mixture of experts"),
    "heads": ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads.*must be 4"),
    "odd rope": ("deepseek_v3", {"qk_rope_head_dim": 5}, "even rotary dimension"),
    "no rope": ("deepseek_v3", {"qk_rope_head_dim": 0}, "qk_rope_head_dim"),
    **{
        key: ("deepseek_v4", {key: value}, message)
        for key, value, message in (
            ("hc_mult", 4, r"hc_mult \(4\) must be 1: kvlab has no hyper-connections"),
            ("hc_eps", 1e-6, "hc_eps .*hyper-connections"),
            ("n_routed_experts", 8, "n_routed_experts .*mixture of experts"),
            ("o_groups", 2, "o_groups .*must be 1"),
            ("o_lora_rank", 8, "o_lora_rank .*must be 24"),
            ("swiglu_limit", 10.0, r"swiglu_limit \(10.0\) must be 65504 or more"),
            ("sliding_window", 1, r"sliding_window \(1\) must be"),
            (
                "rope_parameters",
                dict.fromkeys(("main", "compress"), ROPE["rope_parameters"]),
                "partial_rotary_factor of main contradicts",
            ),
            (
                "layer_types",
                [S, "compressed_sparse_attention"],
                "layer_types: kvlab has no 'compressed_sparse_attention' layers",
            ),
            ("mlp_layer_types", ["moe", "hash_moe"], "mlp_layer_types: kvlab has no 'hash_moe'"),
        )
    },
    "tanh": ("gpt2", {"activation_function": "gelu_new"}, "activation_function .gelu_new"),
    "scale": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    "by layer's number": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
    "cross": ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    "several heads": ("gpt_bigcode", {"multi_query": False}, "multi_query"),
    "no heads": ("gpt2", {"n_head": 0}, "num_attention_heads and hidden_size must be at"),
    "division": ("llama", {"num_attention_heads": 0}, "transformers cannot read it"),
    "type": ("llama", {"hidden_size": "24"}, "transformers cannot read it.*hidden_size"),
    "endless": (
        "qwen3",
        {"num_hidden_layers": 10**9},
        r"number of layers \(1000000000\) must be from 1 to 1000",
    ),
    "endless by its older name": ("gpt2", {"n_layer": 10**9}, "must be from 1 to 1000"),
    "no layers": (
        "smollm3",
        {"num_hidden_layers": 0, "no_rope_layers": []},
        r"number of layers \(0\) must be from 1",
    ),
    "layers that are no number": (
        "llama",
        {"num_hidden_layers": "2"},
        r"number of layers \(2\) must be from 1",
    ),
    "no number of dense layers": (
        "deepseek_v3",
        {"first_k_dense_replace": None},
        r"first_k_dense_replace \(None\) must be a whole number",
    ),
    "no width of values": ("deepseek_v3", {"v_head_dim": None}, r"v_head_dim \(None\)"),
    "no context": (
        "gpt2",
        {"max_position_embeddings": [1]},
        r"max_position_embeddings \(\[1\]\) must be a whole number",
    ),
    "by layer": ("llama", {"per_layer_config": {"0": {}}}, "per_layer_config"),
    "both ways": ("llama", {"is_causal": False}, r"is_causal \(False\) must be True"),
    "large": ("llama", {"vocab_size": 2**62}, "a model that is too large"),
    "larger": ("llama", {"intermediate_size": 10**30}, "a model that is too large"),
    "epsilon": ("llama", {"rms_norm_eps": 0.0}, "norm_eps"),
}


@needs_transformers
@pytest.mark.parametrize("name", NOT_IMPORTABLE)
def test_an_external_configuration_that_kvlab_cannot_follow_is_refused_by_its_key(name):
    model_type, fields, message = NOT_IMPORTABLE[name]
    with pytest.raises(InteropError, match=message) as caught:
        from_stock({"model_type": model_type} | BASES[model_type] | fields, {})
    assert "\n" not in str(caught.value)


@needs_transformers
def test_sinks_that_a_model_of_kvlab_has_no_place_for_are_refused():
    model = random_gpt(config_of("gqa_sinks"))
    stock = to_stock(model.config, model.state_dict())
    names = [f"model.layers.{idx}.self_attn.sinks" for idx in range(4)]
    assert all(torch.equal(stock.weights[name], torch.full((H,), -1e4)) for name in names[1::2])
    for name, value, message in (
        (names[1], torch.zeros(H), "self_attn.sinks of a full_attention layer is above -1000"),
        (names[0], torch.zeros(H + 1), rf"{names[0]}: \[5\], .*needs \[4\]"),
        (names[1], torch.zeros(H, dtype=torch.int32), f"{names[1]} are torch.int32"),
    ):
        with pytest.raises(InteropError, match=message):
            from_stock(stock.config, stock.weights | {name: value})
    del stock.weights[names[3]]
    with pytest.raises(InteropError, match=f"{names[3]}: missing"):
        from_stock(stock.config, stock.weights)


@needs_transformers
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.1.self_attn.o_b_proj.weight", "low-rank output projection"),
        ("layers.0.mlp.experts.down_proj", "mixture of experts"),
        ("layers.1.attn_hc.fn", "hyper-connections"),
        ("layers.0.ffn_hc.base", "hyper-connections"),
        ("hc_head.hc_fn", "hyper-connections"),
    ],
)
def test_parts_of_deepseek_v4_that_do_something_are_refused_by_name(name, message):
    model = random_gpt(config_of("shared_kv"))
    stock = to_stock(model.config, model.state_dict())
    stock.weights[f"model.{name}"] = stock.weights[f"model.{name}"] + 0.01
    if name.endswith("base"):
        stock.weights[f"model.{name}"][1:] = 0
        stock.weights[f"model.{name}"][0] = 3.0
    with pytest.raises(InteropError, match=f"weights model.{name}: kvlab has no {message}"):
        from_stock(stock.config, stock.weights)


@needs_transformers
def test_what_decides_nothing_costs_nothing_in_an_external_configuration():
    model = random_gpt(config_of("classic_mha"))
    stock = to_stock(model.config, model.state_dict())
    # A table in place of the class's own, and labels that would be counted out.
    more = {"attribute_map": "x", "num_labels": 10**12, "id2label": 3, "label2id": 3}
    config, weights = from_stock(stock.config | more, stock.weights)
    assert config.num_hidden_layers == 2
    assert len(weights) == len(model.state_dict())


@needs_transformers
def test_a_model_is_compared_with_its_weights_without_memory_for_its_size():
    # Indices of the rows of so many heads would take terabytes.
    many = DEEPSEEK | {"num_attention_heads": 10**11, "num_key_value_heads": 10**11}
    with pytest.raises(InteropError, match=r"weights .*: missing"):
        from_stock({"model_type": "deepseek_v3"} | many, {})


@needs_transformers
def test_external_weights_are_those_of_the_configuration():
    model = random_gpt(config_of("mha"))
    stock = to_stock(model.config, model.state_dict())
    config, weights = stock.config, stock.weights
    embedding, name = weights["model.embed_tokens.weight"], "model.layers.0.mlp.up_proj.weight"
    same, _ = from_stock(
        config,
        weights | {"model.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": embedding.clone()},
    )
    assert same.tie_word_embeddings
    for changed, message in (
        ({key: tensor for key, tensor in weights.items() if key != name}, f"{name}: missing"),
        (weights | {"model.layers.2.norm.weight": embedding}, r"layers.2.norm.*has none"),
        (weights | {name: embedding}, rf"{name}: \[61, 24\]"),
        (weights | {"lm_head.weight": embedding + 1}, "lm_head.weight is not the embedding"),
        (weights | {name: weights[name].to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    ):
        with pytest.raises(InteropError, match=message):
            from_stock(config, changed)


@needs_transformers
def test_an_end_that_is_several_tokens_or_none_ends_no_document():
    weights = {}
    for end in ([1, 2], None, N):
        model = random_gpt(config_of("mha"))
        stock = to_stock(model.config, model.state_dict())
        weights = stock.weights
        config, _ = from_stock(stock.config | {"eos_token_id": end}, weights)
        assert config.end_of_document_id is None
