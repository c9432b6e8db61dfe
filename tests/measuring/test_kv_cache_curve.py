"""A cache as a function of the tokens: measured, fitted, compared with the closed form, stated."""

import dataclasses

import pytest
import torch

import measuring.kv_cache
from measuring.errors import EvaluationError
from measuring.kv_cache import (
    CacheMeasurement,
    cache_bytes_of,
    contexts_to_measure,
    estimated_cache_bytes,
    fitted_curve,
    measure_kv_cache,
    require_closed_form,
)
from measuring.windows import cache_context_for
from modeling.accounting import CacheCurve, cache_curve, kv_cache_bytes, kv_cache_bytes_read
from modeling.config import LayersConfig
from settings.evaluation import EvalSettings
from tests.tiny_models import scored_model as model

WINDOW = {"window": 3}
ARRANGEMENTS = {
    "uniform": {},
    "window": WINDOW,
    "window of 1": {"window": 1},
    "window_full": WINDOW | {"full_every": 2},
    "shared_pairs": {"share": "pairs"},
    "window of 99": {"window": 99, "full_every": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("attention", ["gqa", "mla"])
@pytest.mark.parametrize("layers", ARRANGEMENTS)
def test_the_curve_that_is_fitted_is_the_closed_form(layers, attention, dtype):
    built = model(attention, layers=LayersConfig(**ARRANGEMENTS[layers]))
    cache = measure_kv_cache(built, 2, 16, dtype)  # beyond the 8 that it was trained on
    require_closed_form("x", cache)
    assert len(cache.points) >= 4
    for tokens in (*cache.points, 1, 64, 99, 200):
        assert cache.curve.bytes(tokens) == kv_cache_bytes(built.config, tokens, dtype)
    if layers != "window of 1":  # which is full from the first token on
        assert cache.curve == cache_curve(built.config, dtype)
    row = cache.as_row()
    assert cache_bytes_of(row) == row["kv_cache_bytes_at_context"] == cache.points[16]
    assert row["kv_cache_bytes_measured"] == cache.points[16] / 16
    read = kv_cache_bytes_read(built.config, 16, dtype)
    assert row["kv_cache_bytes_read_per_step"] == read
    assert (read == 2 * cache.points[16]) == (layers == "shared_pairs")
    assert estimated_cache_bytes(row, 1000) == cache.curve.bytes(1000)


@pytest.mark.parametrize(
    ("context", "window", "longest", "expected"),
    [
        (256, None, None, [1, 64, 128, 192, 256]),
        (256, 64, None, [1, 63, 64, 65, 256]),
        (64, 64, None, [1, 63, 64, 65, 256]),
        (64, 64, 64, [1, 63, 64]),
        (8, 99, None, [1, 2, 4, 6, 8]),  # too far beyond to be filled
        (1, None, None, [1, 2]),
        (1, None, 1, [1]),
    ],
)
def test_contexts_are_where_the_cache_bends(context, window, longest, expected):
    assert contexts_to_measure(context, window, longest) == expected


def test_what_fits_no_curve_is_none():

    assert fitted_curve({2: 10.0, 4: 20.0, 6: 25.0, 9: 25.0}) == CacheCurve(0, 5, 5, 0)
    assert fitted_curve({5: 7.0}) is None
    steps = {1: 100.0, 10: 100.0, 11: 900.0, 20: 900.0, 21: 5000.0, 30: 5000.0}
    assert fitted_curve(steps) is None
    row = CacheMeasurement(30, steps, 1).as_row()
    assert row["kv_cache_curve"] is None
    assert cache_bytes_of(row) == 5000
    assert estimated_cache_bytes(row, 60) == 10_000


def test_a_cache_that_leaves_its_closed_form_at_any_context_is_refused():
    cache = measure_kv_cache(model("gqa"), 1, 8)
    wrong = dataclasses.replace(cache, points=cache.points | {4: 1.02 * cache.points[4]})
    with pytest.raises(EvaluationError, match=r"x: the live KV cache of 4 tokens takes 1,044 byt"):
        require_closed_form("x", wrong)


def test_a_cache_without_room_is_refused_and_further_contexts_are_left_out(monkeypatch):
    built = model("gqa", layers=LayersConfig(window=4, full_every=2))
    needed = kv_cache_bytes(built.config, 8)
    monkeypatch.setattr(measuring.kv_cache, "available_bytes", lambda device: needed / 0.8)
    assert max(measure_kv_cache(built, 1, 8).points) == 8  # and not 16
    with pytest.raises(EvaluationError, match=r"of 9 tokens takes .* set eval.cache_context"):
        measure_kv_cache(built, 1, 9)


def test_the_stated_context_is_asked_for_or_the_models_own():
    learned = model("mla_no_rope").config
    assert cache_context_for(EvalSettings(), learned) == 8
    assert cache_context_for(EvalSettings(cache_context=9), model("gqa").config) == 9
    with pytest.raises(EvaluationError, match=r"eval.cache_context \(9\) is longer than the 8 pos"):
        cache_context_for(EvalSettings(cache_context=9), learned)
    for context in (0, 10**7 + 1):
        [problem] = EvalSettings(cache_context=context).problems()
        assert problem.startswith(f"eval.cache_context ({context}) must be from 1 to 10,000,000")


def test_rows_from_before_the_key_say_as_much_by_token():
    old = {"kv_cache_bytes_per_token": 1728, "kv_cache_bytes_measured": 1728.0}
    assert cache_bytes_of(old | {"protocol": {"context": 256}}) == 256 * 1728
    external = {"kv_cache_bytes_per_token": None, "kv_cache_bytes_measured": 64.0}
    assert cache_bytes_of(external | {"kv_cache_context": 32}) == 2048
    assert estimated_cache_bytes(external | {"kv_cache_context": 32}, 64) == 4096
    unknown = dict.fromkeys(old)
    assert cache_bytes_of(unknown) == float("inf")
    assert estimated_cache_bytes(unknown, 64) == 0
