"""K = V: gqa_tied, mqa_tied and shared_kv, beside their oracles and other people's code."""

import dataclasses
import math

import pytest
import torch
from tiny import (
    FIVE,
    LATENT,
    B,
    LiveBytes,
    M,
    S,
    assert_near,
    build_attention,
    build_gpt,
    normal,
    random_tokens,
    randomise,
    reference,
    run_through_cache,
)

from modeling.attention import ForwardPass, Placement, attention_config
from modeling.contract import left_padding
from modeling.errors import ModelConfigError
from modeling.reference import Producer
from modeling.rope import MOST_TABLED, HeldPositions, Positions

FLOAT64 = torch.float64
HEADS = {"hidden_size": M, "num_attention_heads": 4}
TIED = HEADS | {
    "name": "gqa_tied",
    "num_key_value_heads": 2,
    "head_dim": 8,
    "v_head_dim": 8,
    "qk_rope_head_dim": 8,
}
SHARED = HEADS | {
    "name": "shared_kv",
    "head_dim": 12,
    "v_head_dim": 12,
    "qk_rope_head_dim": 4,
    "q_lora_rank": 10,
}
FORMS = {
    "gqa_tied": TIED,
    "mqa_tied_partial_rope_bias": TIED
    | {"name": "mqa_tied", "num_key_value_heads": 1, "qk_rope_head_dim": 6, "attention_bias": True},
    "gqa_tied_qk_norm_no_rope": TIED | {"use_qk_norm": True, "qk_rope_head_dim": 0},
    "gqa_tied_norm": TIED | {"kv_tie": "norm"},
    "gqa_tied_norm_qk_norm": TIED | {"kv_tie": "norm", "use_qk_norm": True, "qk_rope_head_dim": 4},
    "shared_kv": SHARED | {"attention_bias": True},
    "shared_kv_no_rope": SHARED | {"qk_rope_head_dim": 0},
    "shared_kv_all_rotated": SHARED | {"qk_rope_head_dim": 12},
    "mla_latent_scale": LATENT | {"latent_scale": True, "q_lora_rank": 14},
}
PLACEMENTS = {
    "uniform": Placement(),
    "window": Placement(window=3),
    "window_sinks": Placement(window=3, sinks=True),
    "sinks": Placement(sinks=True),
}
# Not contiguous, and two rows that differ.
POSITIONS = torch.tensor([[3, 5, 6, 7, 20, 21, 22], [0, 0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4, 3]])


@torch.no_grad()
@pytest.mark.parametrize("place", PLACEMENTS)
@pytest.mark.parametrize("form", FORMS)
def test_form_equals_its_oracle_in_every_place(form, place):
    config = attention_config(FORMS[form]).placed(PLACEMENTS[place])
    module = randomise(config.build()).double().eval()
    x, mask = normal(B, S, M, dtype=FLOAT64), normal(B, S, S) > -0.5
    expected = reference(config, module.state_dict(), x, POSITIONS, attention_mask=mask)
    assert_near(module(x, POSITIONS, attention_mask=mask), expected)
    for chunks in ((1,) * S, (3, 1, 3), (4, 3)):
        assert_near(run_through_cache(module, x, POSITIONS, chunks, mask), expected)
    # A consumer has its own queries and norms, and reads what the producer keeps.
    reads = config.placed(dataclasses.replace(PLACEMENTS[place], source=0))
    consumer = randomise(reads.build(1), seed=5).double().eval()
    shared, before = ForwardPass(mask, read_layers={0}), normal(B, S, M, dtype=FLOAT64, seed=7)
    module(before, POSITIONS, forward_pass=shared)
    expected = reference(
        reads,
        consumer.state_dict(),
        x,
        POSITIONS,
        attention_mask=mask,
        producer=Producer(module.state_dict(), before),
    )
    assert_near(consumer(x, POSITIONS, forward_pass=shared), expected)
    for each in (module, consumer):
        count = sum(parameter.numel() for parameter in each.parameters())
        assert count == each.config.num_parameters()


ARRANGED = {
    "uniform": {},
    "window_full": {"window": 3, "full_every": 2, "full_rope": False},
    "window_sinks_shared": {"window": 3, "full_every": 2, "share": "last", "sinks": True},
    "pairs": {"share": "pairs"},
}


@torch.no_grad()
@pytest.mark.parametrize("arranged", ARRANGED)
@pytest.mark.parametrize("form", ["gqa_tied", "gqa_tied_norm_qk_norm", "shared_kv"])
def test_model_decodes_rows_of_different_lengths_as_each_alone(form, arranged):
    model = build_gpt(FORMS[form], num_hidden_layers=4, layers=ARRANGED[arranged])
    model = randomise(model, std=0.2).double()
    lengths, tokens = [13, 9, 4], random_tokens(3, 13)
    positions, mask = left_padding(lengths)
    for dtype in (FLOAT64, torch.int8):
        # int8 rounds: of its rows no more is asked than that they do not depend on each other.
        cache, outputs = model.new_cache(3, 13, dtype), []
        for start, end in ((0, 5), (5, 9), (9, 10), (10, 11), (11, 13)):
            piece, now = tokens[:, start:end], positions[:, start:end]
            outputs.append(model(piece, now, cache, mask[:, :end]))
        together = torch.cat(outputs, dim=1)
        for row, length in enumerate(lengths):
            ours = tokens[row : row + 1, -length:]
            if dtype == FLOAT64:
                expected = model(ours)
            else:
                alone = model.new_cache(1, 13, dtype)
                expected = torch.cat([model(token, cache=alone) for token in ours.split(1, 1)], 1)
            assert_near(together[row : row + 1, -length:], expected, roundings=512)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"use_qk_norm": True}, {"attention_bias": True}], ids=str)
def test_tied_is_gqa_whose_value_projection_is_its_key_projection(changes):
    tied = build_attention(TIED | changes, FLOAT64)
    state = tied.state_dict()
    for part in ("weight", "bias") if "attention_bias" in changes else ("weight",):
        state[f"v_proj.{part}"] = state[f"k_proj.{part}"]
    gqa = build_attention(FIVE["gqa"] | changes, FLOAT64)
    gqa.load_state_dict(state)
    x = normal(B, S, M, dtype=FLOAT64)
    for chunks in ((S,), (3, 1, 3)):
        expected = run_through_cache(gqa, x, torch.arange(S), chunks)
        assert_near(run_through_cache(tied, x, torch.arange(S), chunks), expected)
    assert 2 * tied.new_cache(B, S).num_bytes() == gqa.new_cache(B, S).num_bytes()


@torch.no_grad()
@pytest.mark.slow
def test_tied_norm_equals_transformers_gemma4_full_attention():
    gemma4 = pytest.importorskip("transformers.models.gemma4.modeling_gemma4")
    kinds = ("sliding_attention", "full_attention")
    config = gemma4.Gemma4TextConfig(
        vocab_size=10,
        hidden_size=M,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        rms_norm_eps=1e-6,
        layer_types=list(kinds),
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 1e4} for kind in kinds},
    )
    config._attn_implementation = "eager"
    ours = build_attention(TIED | {"kv_tie": "norm", "use_qk_norm": True})
    theirs = gemma4.Gemma4TextAttention(config, 1).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.q_norm.weight.mul_(8**-0.5)  # its scores are not scaled
    x = normal(B, S, M)
    cos, sin = Positions(torch.arange(S)).cos_sin(8, 1e4, torch.float32)
    sin = torch.cat((-sin[:, :4], sin[:, 4:]), dim=-1)
    hidden = torch.full((S, S), torch.finfo(torch.float32).min).triu(1)[None, None]
    expected = theirs(x, (cos[None], sin[None]), hidden, {})[0]
    assert_near(ours(x, torch.arange(S)), expected)


@torch.no_grad()
@pytest.mark.slow
def test_shared_kv_equals_transformers_deepseek_v4_attention():
    v4 = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    d, r = SHARED["head_dim"], SHARED["qk_rope_head_dim"]
    block = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": r / d}
    config = v4.DeepseekV4Config(
        vocab_size=10,
        hidden_size=M,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=d,
        q_lora_rank=SHARED["q_lora_rank"],
        partial_rotary_factor=r / d,
        rope_parameters={"main": block, "compress": block},
        layer_types=["sliding_attention"],
        sliding_window=100,
        o_groups=1,
        o_lora_rank=M,
    )
    config._attn_implementation = "eager"
    ours = attention_config(SHARED).placed(Placement(window=100, sinks=True)).build()
    ours = randomise(ours).eval()
    theirs = v4.DeepseekV4Attention(config, 0).eval()
    # Its RoPE rotates dimension 2 j together with 2 j + 1.
    order = torch.cat((torch.arange(d - r), d - r + torch.arange(r).view(2, -1).t().flatten()))
    heads = (torch.arange(4)[:, None] * d + order).flatten()
    state = ours.state_dict()
    state["q_b_proj.weight"] = state["q_b_proj.weight"][heads]
    state["kv_proj.weight"] = state["kv_proj.weight"][order]
    state["kv_norm.weight"] = state["kv_norm.weight"][order]
    state["o_a_proj.weight"] = state.pop("o_proj.weight")[:, heads]
    state["o_b_proj.weight"] = torch.eye(M)
    theirs.load_state_dict(state)
    x, at = normal(B, S, M), torch.arange(S)[None]
    rotary = v4.DeepseekV4RotaryEmbedding(config)
    angles = {"main": rotary(x, at, layer_type="main")}
    hidden = torch.full((S, S), torch.finfo(torch.float32).min).triu(1)[None, None]
    expected = theirs(x, angles, at, hidden)[0]
    assert_near(ours(x, torch.arange(S)), expected)


@torch.no_grad()
def test_step_of_tied_makes_keys_of_one_block_alone(monkeypatch):
    config = attention_config(TIED | {"kv_tie": "norm"})
    module, context = config.build().eval(), 1024
    cache = module.new_cache(1, context + 1)
    module(normal(1, context, M), torch.arange(context), cache)
    peaks = []
    for elements in (2**20, 2**10):
        monkeypatch.setattr("modeling.attention.kernel.BLOCK_ELEMENTS", elements)
        cache.truncate(context)
        with LiveBytes() as live:
            module(normal(1, 1, M), torch.tensor([context]), cache)
        peaks.append(live.peak)
    keys = context * 2 * 8 * 4
    assert 2 * peaks[1] < keys < peaks[0]


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("highest", [40, MOST_TABLED + 40], ids=["looked_up", "computed"])
def test_held_positions_have_the_cosines_of_positions(rows, highest):
    index = torch.arange(highest - 40, highest).flip(0)
    index = index if rows is None else index + torch.arange(rows)[:, None]
    for dtype in (torch.float32, FLOAT64):
        found = HeldPositions(index).cos_sin(6, 1e4, dtype)
        expected = Positions(index).cos_sin(6, 1e4, dtype)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@torch.no_grad()
def test_latent_scale_is_the_norms_weight_times_the_root_of_the_widths():
    plain = build_attention(LATENT | {"q_lora_rank": 14}, FLOAT64)
    scaled = build_attention(LATENT | {"q_lora_rank": 14, "latent_scale": True}, FLOAT64)
    plain.kv_a_layernorm.weight.mul_(math.sqrt(M / LATENT["kv_lora_rank"]))
    plain.q_a_layernorm.weight.mul_(math.sqrt(M / 14))
    x = normal(B, S, M, dtype=FLOAT64)
    for chunks in ((S,), (3, 1, 3)):
        expected = run_through_cache(plain, x, torch.arange(S), chunks)
        assert_near(run_through_cache(scaled, x, torch.arange(S), chunks), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (TIED | {"v_head_dim": 10}, r"v_head_dim \(10\) must equal head_dim \(8\)"),
        (TIED | {"kv_tie": "both"}, r"kv_tie \('both'\) must be plain or norm"),
        (TIED | {"name": "mqa_tied"}, "attention=mqa_tied has num_key_value_heads = 1, not 2"),
        (SHARED | {"v_head_dim": 10}, r"v_head_dim \(10\) must equal head_dim \(12\)"),
        (SHARED | {"qk_rope_head_dim": 14}, r"qk_rope_head_dim \(14\) must not exceed head_dim"),
        (SHARED | {"q_lora_rank": 0}, r"q_lora_rank \(0\) must be at least 1"),
        (SHARED | {"rms_norm_eps": 0.0}, r"rms_norm_eps \(0.0\) must be in \(0, 1\)"),
        (SHARED | {"decode_path": "absorbed"}, r"decode_path \('absorbed'\) must be auto"),
    ],
    ids=str,
)
def test_impossible_values_are_named(fields, message):
    with pytest.raises(ModelConfigError, match=message):
        attention_config(fields)


@pytest.mark.parametrize(
    ("form", "asked", "expected"),
    [("gqa_tied", 9, 8), ("gqa_tied", 30, 32), ("shared_kv", 48, 48), ("shared_kv", 1, 4)],
)
def test_width_that_is_free_takes_the_elements_asked_for(form, asked, expected):
    config = attention_config(FORMS[form]).with_kv_cache_elements(asked)
    assert config.state().elements_per_token == expected
