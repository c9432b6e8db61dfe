"""Decoding timed: what a point says, which runs share a timing, where a run overtakes."""

import dataclasses

import pytest
import torch

import measuring.decode
from comparing.decode_speed import break_even
from measuring.decode import (
    DecodeStep,
    check_memory,
    fill_with_noise,
    measure_decode,
    weight_bytes,
)
from measuring.errors import EvaluationError
from measuring.kv_cache import measure_generation_memory
from measuring.machine import measure_memory_bandwidth, peak_extra_bytes
from modeling.accounting import kv_cache_bytes_per_token
from modeling.config import LayersConfig
from reporting.cost_tables import decode_tables
from reporting.markdown import table as drawn
from settings.evaluation import DecodeSettings
from tests.tiny_models import scored_model as model

CPU = torch.device("cpu")
# Neither in order, as a user may give them.
QUICK = DecodeSettings(batch_sizes=[2, 1], contexts=[20, 4], rounds=2, steps=1)


def silent(line):
    raise AssertionError(line)


@pytest.mark.parametrize("dtype", [None, torch.int8, torch.bfloat16], ids=str)
def test_every_model_is_timed_at_every_batch_and_context(dtype):
    models = {name: model(name) for name in ("mha", "mla", "mla_no_rope")}
    found = measure_decode(models, QUICK, dtype, silent)
    for name, points in found.items():
        where = [(point.batch, point.context) for point in points]
        assert where == [(1, 4), (1, 20), (2, 4), (2, 20)]
        per_token = kv_cache_bytes_per_token(models[name].config, dtype or torch.float32)
        for point in points:
            assert point.ms_per_token > 0
            assert len(point.ms_by_round) == QUICK.rounds
            assert point.tokens_per_second == pytest.approx(1e3 * point.batch / point.ms_per_token)
            assert point.cache_bytes == per_token * point.batch * point.context
            read = weight_bytes(models[name]) + point.cache_bytes
            assert point.roofline_ms == pytest.approx(1e3 * read / point.memory_bandwidth)
            assert point.peak_extra_bytes > 0
            assert point.beyond_trained == (point.context == 20)


@pytest.mark.parametrize(
    ("layers", "stored", "read"),
    [
        ({}, 2 * 20, 2 * 20),
        ({"window": 3}, 2 * 3, 2 * 3),
        ({"window": 3, "full_every": 2}, 3 + 20, 3 + 20),
        ({"share": "pairs"}, 20, 2 * 20),
    ],
    ids=str,
)
def test_the_roofline_is_what_a_step_reads_at_its_context(layers, stored, read):
    built = model("gqa", layers=LayersConfig(**layers))
    found = measure_decode({"x": built}, dataclasses.replace(QUICK, contexts=[20]), None, silent)
    point = found["x"][-1]
    assert point.batch == 2
    # Keys and values of 2 heads of 8, in float32.
    assert point.cache_bytes == 2 * stored * 2 * 2 * 8 * 4
    assert point.cache_bytes_read == 2 * read * 2 * 2 * 8 * 4
    everything = weight_bytes(built) + point.cache_bytes_read
    assert point.roofline_ms == pytest.approx(1e3 * everything / point.memory_bandwidth)


def test_a_step_can_be_repeated_and_leaves_the_cache_as_it_was():
    step = DecodeStep(model(), batch=3, context=5)
    first, again = step(), step()
    assert first.shape == (3, 50)
    assert torch.equal(first, again)
    assert step.cache.seen == 5
    assert all(tensor[:, :, :5].any() for tensor in step.cache.layers[1].tensors.values())


@pytest.mark.parametrize("end", [0, 1])
def test_a_step_of_a_model_that_keeps_documents_apart_can_be_repeated(end):
    step = DecodeStep(model(intra_document_mask=True, end_of_document_id=end), batch=2, context=5)
    assert torch.equal(step(), step())


def test_noise_fills_an_int8_cache_with_scales():
    cache = model("mla").new_cache(2, 6, torch.int8)
    fill_with_noise(cache, 4)
    layer = cache.layers[0]
    assert cache.seen == 4
    assert layer.view().read("latent", torch.float32).abs().sum() > 0
    assert not layer.tensors["latent"][:, :, 4:].any()


def test_weights_that_a_step_reads_leave_out_embeddings_that_are_looked_up():
    total = {
        name: sum(p.numel() * 4 for p in m.parameters())
        for name, m in {
            "tied": model(),
            "untied": model(tie_word_embeddings=False),
            "learned": model("mla_no_rope"),
        }.items()
    }
    assert weight_bytes(model()) == total["tied"]
    assert weight_bytes(model(tie_word_embeddings=False)) == total["untied"] - 50 * 16 * 4
    assert weight_bytes(model("mla_no_rope")) == total["learned"] - 8 * 16 * 4


def test_a_point_without_room_is_left_out_with_a_line(monkeypatch):
    monkeypatch.setattr(measuring.decode, "available_bytes", lambda device: 10_000)
    lines = []
    found = measure_decode({"a": model("mha")}, QUICK, None, lines.append)
    # 512 bytes a token: 4 and 20 tokens and one more, times 1 and 2.
    assert [(p.batch, p.context) for p in found["a"]] == [(1, 4), (2, 4)]
    assert [line.split(":")[0] for line in lines] == [
        "decoding at batch 1 and context 20 is left out",
        "decoding at batch 2 and context 20 is left out",
    ]
    with pytest.raises(EvaluationError, match=r"need [\d.]+ kB of the [\d.]+ k?B that are free"):
        check_memory([model("mha")], 2, 20, None, CPU)
    monkeypatch.setattr(measuring.decode, "available_bytes", lambda device: None)
    check_memory([model("mha")], 2, 20, None, CPU)


def points(batch, by_context):
    return [
        {"batch": batch, "context": c, "ms_by_round": ms, "ms_per_token": ms[0]}
        for c, ms in by_context.items()
    ]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({128: [9, 9, 9], 256: [9, 9, 9]}, 128),
        ({128: [11, 11, 11], 256: [9, 9, 9]}, 256),
        ({128: [9, 9, 9], 256: [11, 11, 11]}, None),
        ({128: [9, 11, 11], 256: [9, 11, 9]}, 256),  # the median of the ratios decides
        ({128: [10, 10, 10], 256: [10, 10, 10]}, None),
        ({512: [9, 9, 9]}, None),  # the baseline was not measured there
    ],
)
def test_break_even_is_where_a_run_begins_to_be_faster_for_good(ours, expected):
    baseline = points(1, {128: [10, 10, 10], 256: [10, 10, 10]}) + points(8, {128: [1, 1, 1]})
    assert break_even(points(1, ours), baseline, 1) == expected


def test_allocations_are_followed_to_their_peak():
    def call():
        first = torch.zeros(1000)
        del first
        kept = torch.zeros(500), torch.zeros(700)
        return kept

    assert 4800 <= peak_extra_bytes(call, CPU) < 5200


@pytest.mark.parametrize("dtype", [None, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["mha", "mqa", "mla", "mla_no_rope"])
def test_generation_takes_little_beyond_weights_and_cache(name, dtype):
    gpt, batch, context = model(name, max_position_embeddings=200), 3, 200
    extra = measure_generation_memory(gpt, batch, context, dtype)
    # Of a prompt: activations, of which the widest is the MLP's 24, twice, and for a latent the
    # keys and values of all 4 heads; a mask; the logits of one token. A few live at once.
    per_token = 16 + 2 * 24 + (2 * 4 * 12 if name.startswith("mla") else 4 * 16)
    bound = 6 * 4 * batch * (context * per_token + 50) + 4 * context**2
    assert 0 < extra < bound


def test_memory_bandwidth_is_that_of_a_computer():
    assert 1e8 < measure_memory_bandwidth(CPU) < 1e13


# Tables


def variant(name, even):
    """A variant with two batches timed at two contexts, the second beyond its training."""
    points = [
        {
            "batch": batch,
            "context": context,
            "ms_per_token": 2.0,
            "roofline_ms": 0.5,
            "cache_bytes": 4e6,
            "peak_extra_bytes": 1000,
            "beyond_trained": context > 10,
        }
        for batch in (1, 2)
        for context in (4, 20)
    ]
    break_even = {"1": even, "2": 20}
    return {"name": name, "is_baseline": not even, "decode": points, "break_even": break_even}


def test_each_batch_has_a_table():
    tables = decode_tables([variant("mha", None), variant("mla", 4)])
    assert [table.caption for table in tables] == ["Decoding, batch 1", "Decoding, batch 2"]
    assert "ms at 20*" in drawn(tables[0])
    assert " 4 " in drawn(tables[0])
    assert decode_tables([{"name": "mha"}]) == []


def test_a_variant_that_is_never_faster_is_not_shown_as_the_baseline():
    baseline, never = variant("mha", None), variant("mla", None)
    never["is_baseline"] = False
    first, second = map(drawn, decode_tables([baseline, never]))
    mha, mla = (next(line for line in first.splitlines() if n in line) for n in ("mha", "mla"))
    assert "-" not in mha
    assert mla.rstrip("| ").endswith("-")
    assert next(line for line in second.splitlines() if "mla" in line).rstrip("| ").endswith("20")
