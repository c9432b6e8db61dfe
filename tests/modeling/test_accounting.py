"""Closed forms against what a built model has and does."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
from tiny import CASES, FIVE, build_gpt, gpt_config, random_tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling.accounting import (
    budget_of,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    match_cache,
    match_to_mha,
    mha_baseline,
    mha_cache_bytes_per_token,
    num_parameters,
    training_flops_per_token,
)
from modeling.attention import AttentionConfig, GroupedQueryAttentionConfig
from modeling.errors import ModelConfigError
from modeling.gpt import GPT
from modeling.kv_cache import CACHE_DTYPES, KVCache

ROOT = Path(__file__).parents[2]
MODERN = {}
CLASSIC = {"norm": "layer_norm", "mlp": "gelu", "mlp_bias": True, "position_embedding": "learned"}
BLOCKS = {"modern": MODERN, "classic": CLASSIC, "relu_no_bias": {"mlp": "relu"}}


def roles(model):
    """Parameters of a built model by role, each once."""
    counts = {"embeddings": 0, "attention": 0, "mlp": 0, "norms": 0}
    for name, parameter in model.named_parameters():
        if ".self_attn." in name:
            role = "attention"
        elif ".mlp." in name:
            role = "mlp"
        elif "norm" in name:
            role = "norms"
        else:
            role = "embeddings"
        counts[role] += parameter.numel()
    return counts


def cache_bytes(model, batch, length, dtype):
    """Measured on caches that exist even if the model is only a description."""
    return KVCache(
        [block.self_attn.new_cache(batch, length, dtype, "cpu") for block in model.layers]
    ).num_bytes()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_parameters_and_cache_bytes_equal_those_of_the_built_model(case, block, tied):
    model = build_gpt(case, tie_word_embeddings=tied, **BLOCKS[block])
    counted = num_parameters(model.config)
    assert dataclasses.asdict(counted) == roles(model)
    assert counted.total == sum(p.numel() for p in model.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        measured = model.new_cache(3, 11, dtype).num_bytes()
        assert measured == 3 * 11 * kv_cache_bytes_per_token(model.config, dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cache_bytes_equal_what_is_stored_after_decoding(case, dtype):
    model = build_gpt(case)
    cache = model.new_cache(2, 9, dtype)
    for piece in random_tokens(2, 9).split((6, 1, 1, 1), dim=1):
        model(piece, cache=cache)
    assert cache.seen == 9
    per_token = kv_cache_bytes_per_token(model.config, dtype)
    assert cache.num_bytes() == sum(layer.num_bytes() for layer in cache.layers)
    assert cache.num_bytes() == 2 * 9 * per_token
    # Every tensor that a layer holds is counted.
    held = [
        tensor
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, dict)
        for tensor in value.values()
    ]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 2 * 9 * per_token


@pytest.fixture(scope="module")
def shipped():
    """Compose the shipped configuration of a model, an attention and a block."""
    from launch.compose import checked, composed
    from launch.schemas import TrainConfig

    @functools.cache
    def compose(model, attention, block):
        names = {"model": model, "attention": attention, "block": block}
        found = composed("train", [f"{key}={value}" for key, value in names.items()])
        return dataclasses.replace(checked(found, TrainConfig).model, vocab_size=4096)

    return compose


MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
ATTENTIONS = sorted(path.stem for path in (ROOT / "conf" / "attention").glob("*.yaml"))
# Decoupled RoPE is the point of mla: classic has no RoPE and goes with mla_no_rope instead.
COMBINATIONS = [
    combination
    for combination in itertools.product(MODELS, ATTENTIONS, ("modern", "classic"))
    if combination[1:] != ("mla", "classic")
]


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_closed_forms_of_every_shipped_combination_equal_the_built_model(combination, shipped):
    config = shipped(*combination)
    with torch.device("meta"):
        model = GPT(config)
    assert dataclasses.asdict(num_parameters(config)) == roles(model)
    assert cache_bytes(model, 1, 3, torch.bfloat16) == 3 * kv_cache_bytes_per_token(
        config, torch.bfloat16
    )


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_shipped_combination_can_be_matched_to_mhas_parameters(combination, shipped):
    model, _, block = combination
    config = shipped(*combination)
    mha = shipped(model, "mha", block)
    if block == "classic":  # the baseline has no learned positions
        mha = dataclasses.replace(mha, position_embedding="none", allow_nope=True)
    baseline = num_parameters(mha).total
    assert num_parameters(match_to_mha(config)).total == pytest.approx(baseline, rel=5e-3)


NANO = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "vocab_size": 4096,
    "max_position_embeddings": 256,
}


def nano(name, **changes):
    """Nano's widths, as the shipped configuration works them out."""
    common = {"hidden_size": 192, "num_attention_heads": 8, "v_head_dim": 24}
    groups = {"mha": 8, "mqa": 1, "gqa": 2}
    if name in groups:
        head = {"head_dim": 24, "qk_rope_head_dim": 24, "num_key_value_heads": groups[name]}
    else:
        rope = 12 if name == "mla" else 0
        head = {"qk_nope_head_dim": 24, "kv_lora_rank": 96, "qk_rope_head_dim": rope}
    return gpt_config(common | head | {"name": name}, **(NANO | changes))


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("name", FIVE)
def test_match_to_mha_gives_mhas_parameters_within_half_a_percent(name, mlp):
    config = nano(name, mlp=mlp)
    matched = match_to_mha(config)
    baseline = num_parameters(nano("mha", mlp=mlp)).total
    built = sum(p.numel() for p in GPT(matched).parameters())
    assert built == pytest.approx(baseline, rel=5e-3)
    assert matched.intermediate_size % 8 == 0
    assert matched == dataclasses.replace(config, intermediate_size=matched.intermediate_size)
    if name == "mha":
        assert matched == config


def test_match_to_mha_counts_biases_and_learned_positions():
    config = nano("mqa", mlp_bias=True, position_embedding="learned")
    config.attention["attention_bias"] = True
    mha = nano("mha", mlp_bias=True)
    mha.attention["attention_bias"] = True
    matched = num_parameters(match_to_mha(config)).total
    assert matched == pytest.approx(num_parameters(mha).total, rel=5e-3)


def test_match_to_mha_refuses_what_no_mlp_can_match():
    config = nano("mla", intermediate_size=8)
    config.attention["kv_lora_rank"] = 384
    with pytest.raises(ModelConfigError, match="set match=none, or a larger"):
        match_to_mha(config)


def test_a_model_too_small_for_any_width_to_match_is_refused():
    tiny = gpt_config("gqa", vocab_size=2, num_hidden_layers=1, intermediate_size=8)
    with pytest.raises(ModelConfigError, match=r"within 0\.5 % \(intermediate_size would be 2\.7"):
        match_to_mha(tiny)


@pytest.mark.parametrize("ratio", [0.125, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", ["gqa", "mla", "mla_no_rope"])
def test_match_cache_gives_equal_caches_and_then_equal_parameters(name, ratio):
    config = nano(name, intermediate_size=640)
    narrow = match_cache(config, ratio)
    matched = match_to_mha(narrow)
    mha = GPT(nano("mha", intermediate_size=640))
    built = GPT(matched)
    cache, whole = (model.new_cache(3, 5).num_bytes() for model in (built, mha))
    assert cache == ratio * whole
    counts = [sum(p.numel() for p in model.parameters()) for model in (built, mha)]
    assert counts[0] == pytest.approx(counts[1], rel=5e-3)
    width = "num_key_value_heads" if name == "gqa" else "kv_lora_rank"
    changed = {key for key in config.attention if config.attention[key] != narrow.attention[key]}
    assert changed <= {width}
    assert narrow == dataclasses.replace(config, attention=narrow.attention)


WINDOW_FULL = {"window": 64, "full_every": 4}


@pytest.mark.parametrize("context", [32, 256, 1024])
@pytest.mark.parametrize("layers", [WINDOW_FULL, {"share": "pairs"}], ids=["windows", "pairs"])
def test_caches_of_layers_that_differ_are_matched_at_the_context_that_is_asked_for(layers, context):
    ratio = 0.125
    config = nano("mla", layers=layers, intermediate_size=640)
    matched = match_cache(config, ratio, context)
    wanted = ratio * context * mha_cache_bytes_per_token(config)
    assert kv_cache_bytes(matched, context) == pytest.approx(wanted, rel=5e-3)
    model = GPT(match_to_mha(matched))
    assert model.new_cache(1, context).num_bytes() == kv_cache_bytes(matched, context)
    baseline = num_parameters(nano("mha", intermediate_size=640)).total
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(baseline, rel=5e-3)
    # Layers that hold all tokens are matched at one context as at every other.
    elsewhere = match_cache(config, ratio, 2 * context).attention["kv_lora_rank"]
    grows = matched.attention["kv_lora_rank"] < elsewhere
    assert grows == (layers is WINDOW_FULL and 2 * context > 64)
    assert match_cache(config, ratio) == match_cache(config, ratio, 256)  # the trained one


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4])
def test_match_cache_finds_the_width_where_full_layers_keep_no_rotated_key(ratio):
    layers = {"window": 32, "full_every": 2, "full_rope": False}
    config = nano("mla", layers=layers)
    cache = kv_cache_bytes(match_cache(config, ratio, 1024), 1024)
    assert cache == pytest.approx(ratio * 1024 * mha_cache_bytes_per_token(config), rel=5e-3)


def test_a_budget_of_windows_is_that_of_the_trained_context():
    config = nano("gqa", layers=WINDOW_FULL)
    budget = budget_of(config)
    held = (256 + 3 * 64) * 2 * 2 * 24 * 4
    assert budget.kv_cache_bytes_at_context == GPT(config).new_cache(1, 256).num_bytes() == held
    assert budget.kv_cache_bytes_per_token == 2 * 2 * 24 * 4
    assert budget.cache_ratio_to_mha == held / (256 * 4 * 2 * 192 * 4)
    # The baseline's layers are all alike.
    assert budget_of(mha_baseline(config)) == budget_of(nano("mha"))


def test_a_ratio_between_whole_elements_is_met_within_half_a_percent():
    matched = match_cache(nano("mla"), 0.3)  # of 384: 115.2
    assert matched.attention["kv_lora_rank"] == 115 - 12


@pytest.mark.parametrize(
    ("name", "ratio", "nearest"),
    [
        ("mha", 0.25, "attention=mha is 384; set match_cache_ratio=1,"),
        ("mqa", 0.25, "attention=mqa is 48; set match_cache_ratio=0.125,"),
        ("gqa", 0.3, "attention=gqa is 96; set match_cache_ratio=0.25,"),
        ("gqa", 0.9, "attention=gqa is 384; set match_cache_ratio=1,"),
        ("mla", 0.01, "attention=mla is 13; set match_cache_ratio=0.0338542,"),
    ],
)
def test_a_cache_that_an_attention_cannot_have_is_refused_with_the_nearest(name, ratio, nearest):
    config = nano(name)
    with pytest.raises(ModelConfigError, match=re.escape(nearest)) as error:
        match_cache(config, ratio)
    assert f"match_cache_ratio={ratio:g} asks for {ratio * 384:g} cached" in str(error.value)
    found = float(re.search(r"set match_cache_ratio=([0-9.]+)", str(error.value)).group(1))
    match_cache(config, found)  # what it advises works


def test_names_keep_their_meaning_when_the_cache_is_matched():
    assert match_cache(nano("mha"), 1.0) == nano("mha")
    assert match_cache(nano("mqa"), 0.125) == nano("mqa")


def test_an_attention_without_a_free_width_needs_nothing_to_be_matched():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Fixed(GroupedQueryAttentionConfig):
        with_kv_cache_elements = AttentionConfig.with_kv_cache_elements

    fields = {key: value for key, value in nano("gqa").attention.items() if key != "name"}
    fixed = Fixed(**fields)
    assert fixed.with_kv_cache_elements(48) is fixed


def test_mha_cache_bytes_are_the_yardstick_of_every_attention():
    for name in FIVE:
        assert mha_cache_bytes_per_token(nano(name), torch.float16) == 4 * 2 * 192 * 2
    mha = nano("mha")
    assert kv_cache_bytes_per_token(mha) == mha_cache_bytes_per_token(mha)


@pytest.mark.parametrize("name", FIVE)
def test_a_budget_is_what_the_built_model_costs(name):
    config = nano(name)
    budget = budget_of(config)
    model = GPT(config)
    assert dataclasses.asdict(budget.parameters) == roles(model)
    assert 5 * 7 * budget.kv_cache_bytes_per_token == model.new_cache(5, 7).num_bytes()
    mha = GPT(nano("mha")).new_cache(5, 7).num_bytes()
    assert budget.cache_ratio_to_mha == model.new_cache(5, 7).num_bytes() / mha
    assert budget.training_flops_per_token == training_flops_per_token(config, 256)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", FIVE)
def test_the_yardstick_of_every_attention_costs_what_mha_does(name, bias):
    config, mha = nano(name), nano("mha")
    for one in (config, mha):
        one.attention["attention_bias"] = bias
    assert budget_of(mha_baseline(config)) == budget_of(mha)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("name", FIVE)
def test_training_flops_equal_those_counted(name, mlp):
    context = 48
    # The fast path pads values to the width of the keys; that is no work of the model.
    wide_values = {"v_head_dim": 14} if name == "mla" else {}
    config = gpt_config(FIVE[name] | wide_values, mlp=mlp, max_position_embeddings=context)
    model = GPT(config)
    tokens = random_tokens(2, context)
    # The unfused kernel's matrix products are counted one by one, those of hidden keys too.
    # PyTorch's counter does not know the product that is added in place, of the loss.
    added_in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=added_in_place)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model.loss(tokens, tokens).backward()
    counted = counter.get_total_flops() / tokens.numel()
    # Causal attention sees (t + 1) / 2 of t keys: all are seen at context 2 t - 1.
    assert training_flops_per_token(config, 2 * context - 1) == pytest.approx(counted, rel=0.02)
    hidden_keys = training_flops_per_token(config, 2 * context - 1) - training_flops_per_token(
        config, context
    )
    assert 0.05 * counted < hidden_keys < counted
