import copy
import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

from comparing.decode_speed import add_decode_speed
from comparing.labels import NONE
from comparing.noise import estimate
from comparing.statistics import seed_interval, text_interval, unpaired_seed_interval
from comparing.variant import arrangement_of
from comparing.variants import compare, differing_fields, require_one_protocol
from files.errors import RunError
from measuring.errors import EvaluationError
from measuring.evaluate import _settings
from measuring.perplexity import Score
from measuring.rows import EvaluatedRun
from modeling.config import GPTConfig, LayersConfig
from modeling.gpt import GPT
from reporting.contents import note, protocol_line
from reporting.cost_tables import budget_table
from reporting.headline import headline
from reporting.markdown import table as drawn
from reporting.report import new_report, require_writable, update_report
from reporting.tables import comparison, influence_table, pair_table, run_table
from settings.evaluation import DecodeSettings, EvalSettings
from tests.reporting.variants_for_reports import decode_point
from tests.tiny_models import scored_model as model
from tracking.configuration import flat

WINDOWS, TOKENS = 200, 8  # a window is a document
TEXT = 2.0 + 0.3 * np.random.default_rng(0).normal(size=WINDOWS)  # nats per token, by window
CARD = {
    "corpus": "tiny",
    "split": "validation",
    "context": TOKENS,
    "stride": TOKENS,
    "dtype": "float32",
    "decode_path": "full windows, no cache",
    "words": 1000,
    "utf8_bytes": 5000,
    "tokenizer_sha256": "a" * 64,
    "data_fingerprint": "b" * 64,
}


def run(attention="mha", seed=0, worse=0.0, noise=0.01, scored=True, card=CARD, **settings):
    """A run that is `worse` nats per token than the text's own, and a little by seed."""
    config = model(attention).config
    rng = np.random.default_rng([seed, *attention.encode()])
    rates = TEXT + worse + 0.001 * seed + noise * rng.normal(size=WINDOWS)
    each = (TOKENS * rates).tolist(), [TOKENS] * WINDOWS
    windows = Score(float(TOKENS * rates.sum()), WINDOWS * TOKENS, *each, *each)
    cache = {"mha": 512, "gqa": 256, "mqa": 128, "mla": 96, "mla_no_rope": 64}[attention]
    quality = {
        "tokens_scored": windows.tokens_scored,
        "nll": windows.nll,
        "perplexity": windows.perplexity,
        "word_perplexity": windows.word_perplexity(1000),
        "bits_per_byte": windows.bits_per_byte(5000),
    }
    name = f"{attention}-seed{seed}" + "".join(f"-{value}" for value in settings.values())
    row = {
        "run_name": name,
        "attention": attention,
        "positions": "learned" if attention == "mla_no_rope" else "RoPE",
        "seed": seed,
        "num_parameters": 1000,
        "tokens_trained": 4096,
        "split": "validation",
        **(quality if scored else dict.fromkeys(quality)),
        "kv_cache_bytes_per_token": cache,
        "kv_cache_bytes_measured": float(cache),
        "cache_ratio_to_mha": cache / 512,
        "train_tokens_per_second": 100.0 + seed,
        "train_peak_memory_bytes": 2**20 * (5 + seed),
        "train_wall_seconds": 60.0 * (1 + seed),
        "versions": {"torch": "2"},
        "git_commit": "c" * 40,
        "protocol": card,
    }
    recipe = {
        "run_name": name,
        "seed": seed,
        "trainer.max_tokens": 4096,
        "optim.name": "muon",
        "optim.learning_rate": 0.008,
        "data.name": "tiny",
    }
    whole = recipe | flat({"model": dataclasses.asdict(config)})
    whole |= {key.replace("__", "."): value for key, value in settings.items()}
    curve = {"tokens": [2048, 4096], "perplexity": [9.0, 8.0 + seed]}
    return EvaluatedRun(row, config, windows if scored else None, whole, curve, "def f():\n  pass")


def study(**worse):
    """Three seeds each."""
    return [run(name, seed, by) for name, by in worse.items() for seed in (0, 1, 2)]


def by_label(runs):
    """Nats per token by variant and seed."""
    found = {}
    for one in runs:
        found.setdefault(one.row["attention"], {})[one.row["seed"]] = one.row["nll"]
    return found


def results(runs, baseline=None):
    (group,) = compare(runs, baseline)
    return {result["name"]: result for result in group.results}


def test_seeds_are_one_variant_and_the_cache_gives_the_order():
    (group,) = compare(study(mqa=0.1, mha=0.0, mla=0.05), None)
    assert [v.label for v in group.variants] == ["mha", "mqa", "mla"]
    assert [v["seeds"] for v in group.results] == [[0, 1, 2]] * 3
    assert group.differs == []
    assert "parameters within 0 %" in group.held_equal
    assert "learning rate 0.008" in group.held_equal
    assert "4,096 training tokens asked for" in group.held_equal


def arranged(attention, name="uniform", **layers):
    """A run whose layers differ; a cache that does not grow once the windows are full."""
    found = run(attention, **{f"layers__{k}": v for k, v in layers.items()})
    found.settings["layers.name"] = name
    if "window" in layers:
        found.row.update(kv_cache_bytes_per_token=0, kv_cache_bytes_at_context=300)
    return found


def test_an_evaluated_run_has_its_arrangement_where_variants_look_for_it():
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    layers = LayersConfig(name="mine", window=4, full_every=2)
    attention = {"name": "mha", **sizes, **heads}
    model = GPT(GPTConfig(vocab_size=50, attention=attention, layers=layers, **sizes))
    assert arrangement_of(_settings({}, model)) == "mine"


def test_arrangements_are_in_labels_and_compared_with_layers_that_are_alike():
    runs = [arranged("mha"), arranged("mha", "window", window=4), arranged("gqa")]
    runs += [arranged("gqa", "window_full", window=w, full_every=2) for w in (4, 6)]
    runs += [arranged("mla", "shared_pairs", share="pairs"), arranged("mla", source=[0, 0])]
    (group,) = compare(runs, None)
    labels = {variant.label: variant for variant in group.variants}
    assert labels.keys() == {
        *("mha", "mha window", "gqa", "gqa window_full window=4", "gqa window_full window=6"),
        *("mla shared_pairs", "mla source=[0,0]"),
    }
    assert {variant.baseline.label for variant in group.variants} == {"mha"}
    assert [v["verdict"] for v in group.results].count("not comparable") == 0
    assert labels["mha window"].result["cache_ratio_to_baseline"] == 300 / (8 * 512)
    assert labels["mha window"].result["layers"] == "window"
    [said] = [line for line in group.differs if "layers" in line]
    assert "window_full with window=6, full_every=2 (gqa window_full window=6)" in said
    assert "uniform (mha, gqa)" in said
    text = drawn(comparison(group.results))
    assert re.search(r"^\| mha window .* 300 \| +0\.073 \| +4,096 ", text, re.M)
    (alike,) = compare([arranged(name, "window", window=4) for name in ("mha", "gqa")], None)
    assert [v.label for v in alike.variants] == ["gqa window", "mha window"]
    assert alike.variants[0].baseline.label == "mha window"
    assert "layers window" in alike.held_equal
    assert alike.differs == []


def test_a_variants_numbers_are_those_of_its_runs():
    runs = study(mha=0.0)
    found = results(runs)["mha"]
    nlls = [one.row["nll"] for one in runs]
    assert found["nll"] == pytest.approx(np.mean(nlls))
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(nlls)))
    assert found["perplexity_by_seed"] == [one.row["perplexity"] for one in runs]
    assert found["perplexity_sd"] == pytest.approx(np.std(found["perplexity_by_seed"], ddof=1))
    assert found["perplexity_ci95_seeds"] == pytest.approx(
        [math.exp(end) for end in seed_interval(nlls)]
    )
    low, high = found["perplexity_ci95_text"]
    assert low < found["perplexity"] < high
    assert found["word_perplexity"] == pytest.approx(
        math.exp(np.mean([one.windows.nll_sum for one in runs]) / 1000)
    )
    assert found["bits_per_byte"] == pytest.approx(
        np.mean([one.windows.nll_sum for one in runs]) / math.log(2) / 5000
    )
    assert (found["train_tokens_per_second"], found["train_wall_seconds"]) == (101.0, 120.0)
    assert found["train_peak_memory_bytes"] == 7 * 2**20
    assert (found["verdict"], found["is_baseline"], found["delta_nll"]) == ("baseline", True, None)
    assert found["cache_ratio_to_baseline"] == 1.0


def test_differences_are_paired_by_document_and_judged_by_the_noise_of_all():
    runs = study(mha=0.0, mla=0.05)
    found = results(runs)["mla"]
    by_name = {one.name: one for one in runs}
    pairs = [(by_name[f"mla-seed{seed}"], by_name[f"mha-seed{seed}"]) for seed in (0, 1, 2)]
    deltas = [ours.row["nll"] - theirs.row["nll"] for ours, theirs in pairs]
    assert found["delta_nll"] == pytest.approx(np.mean(deltas))
    noise = estimate(by_label(runs))
    of_seeds = noise.to_baseline("mla", "mha")
    assert found["delta_nll_ci95_seeds"] == pytest.approx(of_seeds.interval)
    assert found["minimum_detectable_nll"] == of_seeds.minimum_detectable
    assert (found["comparison_method"], found["seeds_to_resolve"]) == (of_seeds.method, 0)
    # Its own runs alone, paired by seed.
    assert found["delta_nll_ci95_alone"] == pytest.approx(seed_interval(deltas))
    nats = np.mean(
        [np.subtract(o.windows.document_nll, t.windows.document_nll) for o, t in pairs], axis=0
    )
    expected = text_interval(nats, [TOKENS] * WINDOWS)
    assert found["delta_nll_ci95_text"] == pytest.approx(expected)
    assert found["delta_percent"] == pytest.approx(100 * (math.exp(np.mean(deltas)) - 1))
    assert found["baseline_runs"] == {f"mla-seed{s}": f"mha-seed{s}" for s in (0, 1, 2)}
    assert (found["verdict"], found["verdict_note"]) == ("worse", "")
    assert found["cache_ratio_to_baseline"] == 96 / 512
    # Every run too, against the baseline's run of its own seed.
    row = by_name["mla-seed1"].row
    assert row["baseline_run"] == "mha-seed1"
    assert row["delta_nll"] == pytest.approx(deltas[1])
    assert row["delta_nll_ci95"][0] < deltas[1] < row["delta_nll_ci95"][1]
    assert row["verdict"] == "worse"  # the variant's
    assert by_name["mha-seed1"].row["baseline_run"] is None
    assert row["perplexity_ci95"][0] < row["perplexity"] < row["perplexity_ci95"][1]


@pytest.mark.parametrize(
    ("worse", "expected"),
    [(0.05, "worse"), (-0.05, "better"), (0.0, "equivalent within 1 %")],
)
def test_verdicts_follow_the_difference(worse, expected):
    assert results(study(mha=0.0, gqa=worse))["gqa"]["verdict"] == expected


def test_one_seed_only_is_said():
    found = results([run("mha"), run("gqa", worse=0.05)])
    said = (found["gqa"]["verdict"], found["gqa"]["verdict_note"])
    assert said == ("too few seeds", "single seed")
    assert found["gqa"]["delta_nll_ci95_seeds"] is None
    assert found["gqa"]["perplexity_sd"] is None
    assert "single seed" in drawn(comparison(list(found.values())))
    assert "Single seed" in note(list(found.values()))
    assert "single seed" in headline(list(found.values()))
    assert "Single seed" not in note(list(results(study(mha=0.0)).values()))


def test_each_variant_counts_with_all_its_seeds():
    runs = [*study(mha=0.0), run("gqa", 1, 0.05), run("gqa", 7, 0.05)]
    (group,) = compare(runs, None)
    found = group.results[1]
    assert found["verdict_note"] == "2 against 3 seeds"
    assert found["delta_nll"] == pytest.approx(
        np.mean([one.row["nll"] for one in runs[3:]]) - np.mean([r.row["nll"] for r in runs[:3]])
    )
    assert runs[-1].row["baseline_run"] is None
    assert runs[-1].row["delta_nll"] is None
    assert found["baseline_runs"] == {"gqa-seed1": "mha-seed1"}
    assert found["seeds_to_resolve"] >= 1  # there is no verdict of two
    assert "Numbers of seeds differ (mha 3, gqa 2): each" in " ".join(group.how_sure)
    assert "Numbers of seeds differ: each variant counts with its own" in note([found])


def test_without_a_common_seed_the_interval_is_not_paired():
    one = results([run("mha", 0), run("gqa", 5, 0.05)])["gqa"]
    assert (one["verdict_note"], one["baseline_runs"]) == ("single seed", {})
    assert one["verdict"] == "too few seeds"
    runs = [run("mha", 0), run("mha", 1), run("gqa", 5, 0.05), run("gqa", 6, 0.05)]
    found = results(runs)["gqa"]
    nlls = [one.row["nll"] for one in runs]
    assert found["delta_nll_ci95_alone"] == pytest.approx(
        unpaired_seed_interval(nlls[2:], nlls[:2])
    )
    assert found["comparison_method"] == "Dunnett, pooled"


def test_a_seed_that_is_there_twice_counts_once():
    runs = [*study(mha=0.0), run("gqa", 1, 0.05), run("gqa", 1, 5.0)]
    runs[-1].row["run_name"] = "gqa-seed1-again"
    (group,) = compare(runs, None)
    gqa = group.variants[1]
    assert gqa.result["delta_nll"] == pytest.approx(0.05, abs=0.01)
    assert gqa.ignored == ["gqa-seed1-again"]


def test_without_the_default_baseline_nothing_is_compared():
    found = results(study(gqa=0.0, mla=0.1))
    assert {result["verdict"] for result in found.values()} == {None}
    assert not any(result["is_baseline"] for result in found.values())
    assert found["mla"]["cache_ratio_to_baseline"] is None
    assert "vs baseline" not in drawn(comparison(list(found.values())))


def test_another_baseline_can_be_named():
    found = results(study(gqa=0.0, mla=0.1), "gqa")
    assert (found["gqa"]["verdict"], found["mla"]["verdict"]) == ("baseline", "worse")
    assert found["mla"]["baseline"] == "gqa"
    with_mha = list(results(study(gqa=0.0, mha=-0.1), "gqa").values())
    assert headline(with_mha).endswith("with 2 times the cache.")


def test_a_baseline_that_is_not_there_lists_those_that_are():
    with pytest.raises(EvaluationError, match=r"eval\.baseline=mqa .* there are: gqa, mla$"):
        compare(study(gqa=0.0, mla=0.1), "mqa")


def test_a_baseline_with_another_card_names_the_field():
    runs = [run("mha"), run("gqa", card=CARD | {"stride": 4})]
    with pytest.raises(EvaluationError, match=r"gqa-seed0 has no baseline.*stride \(4, 8\)"):
        compare(runs, "mha")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("corpus", "other", r"corpus \(tiny, other\)"),
        ("tokenizer_sha256", "c" * 64, r"tokenizer_sha256 \(a{12}, c{12}\)"),
        ("stride", 4, r"stride \(8, 4\)"),
        ("decode_path", "token by token, int8 cache", "decode_path"),
    ],
)
def test_runs_of_other_cards_share_no_table_and_the_field_is_named(field, value, said):
    runs = [run("mha"), run("gqa", card=CARD | {field: value})]
    assert [len(group.variants) for group in compare(runs, None)] == [1, 1]
    with pytest.raises(EvaluationError, match=f"mha-seed0 and gqa-seed0 cannot share.*{said}"):
        compare(runs, None, is_one_study=True)
    with pytest.raises(EvaluationError, match=said):
        require_one_protocol(runs)
    assert differing_fields(CARD, CARD) == ""


def test_the_best_match_is_the_baseline_and_is_named():
    """The one that differs least in all but the attention."""
    runs = [
        run("mha", trainer__max_tokens=9),
        run("mha"),
        run("mla", worse=0.1),
        run("gqa", trainer__max_tokens=9, worse=0.1),
    ]
    found = results(runs)
    assert found["mla"]["baseline"] == "mha max_tokens=4096"
    assert found["gqa"]["baseline"] == "mha max_tokens=9"
    assert found["mha max_tokens=9"]["verdict"] == "baseline"
    shown = drawn(comparison(list(found.values()))).splitlines()
    assert "against its baseline" in shown[0]
    assert shown[-1].count("mha max_tokens=4096") == 1
    assert "its baseline" not in drawn(comparison(list(results(study(mha=0.0, mla=0.1)).values())))


def test_a_baseline_without_rope_is_compared_with_that_with_rope():
    learned = copy.deepcopy(run("mha", worse=0.2))
    learned.row.update({"positions": "learned", "run_name": "learned"})
    learned.settings.update(
        {"model.attention.qk_rope_head_dim": 0, "model.position_embedding": "learned"}
    )
    found = results([learned, run("mha")])
    assert found["mha learned positions"]["baseline"] == "mha RoPE positions"
    assert found["mha RoPE positions"]["verdict"] == "baseline"


def test_of_equal_recipes_the_baseline_has_the_size_and_then_the_cache_nearest_to_it():
    runs = [run("mha"), run("mha", model__intermediate_size=99), run("mla", 0, 0.1)]
    runs[1].row["num_parameters"] = 4000
    runs.append(run("mla", 0, 0.1, model__intermediate_size=99))
    runs[3].row["num_parameters"] = 4010
    (group,) = compare(runs, None)
    assert len([variant for variant in group.variants if variant.is_baseline]) == 2
    names = {v.runs[0].name: v.baseline.runs[0].name for v in group.variants}
    assert names["mla-seed0"] == "mha-seed0"
    assert names["mla-seed0-99"] == "mha-seed0-99"

    points = [run("gqa", model__attention__num_key_value_heads=g) for g in (1, 2, 4)]
    points += [run("mla", worse=0.1, model__attention__kv_lora_rank=c) for c in (24, 8, 88)]
    for one, cache in zip(points, (64, 128, 256, 128, 64, 256), strict=True):
        one.row["kv_cache_bytes_per_token"] = cache
    found = results(points, "gqa")
    assert len(found) == 6
    for variant in found.values():
        assert variant["cache_ratio_to_baseline"] == 1.0
        assert (variant["verdict"] == "baseline") == (variant["attention"] == "gqa")


def test_a_run_from_before_a_key_is_of_the_same_variant():
    old = run("mha", 0)
    del old.settings["optim.name"]
    found = results([old, run("mha", 1)])
    assert found["mha"]["seeds"] == [0, 1]


def test_sizes_are_distinguished_by_their_name():
    runs = [run("mha", model__name="nano"), run("mha", model__name="big", model__hidden_size=99)]
    assert results(runs).keys() == {"mha name=nano", "mha name=big"}
    # Where what differs fills no label, runs have their own names.
    keys = [{f"data__{key}": value for key in "abcd"} for value in (1, 2, 3)]
    keys[2] |= {"data__a": 2, "data__b": 2, "data__c": 2}
    assert results([run("mha", **some) for some in keys]).keys() == {
        *("mha-seed0-2-2-2-2", "mha-seed0-2-2-2-3", "mha a=1, b=1, c=1"),
    }


def test_what_a_run_brings_is_no_markup():
    text = "<script>x</script>\n# a | b ![](http://x)"
    runs = [run("mha", trainer__precision=precision) for precision in ("float32", text)]
    (group,) = compare(runs, None)
    for shown in (group.variants[0].label, group.variants[1].label, *group.differs):
        assert not set("<>|![]#\n") & set(shown), shown


def test_variants_of_one_attention_are_distinguished_by_what_differs():
    keys = {"model__attention__kv_lora_rank": 4, "model__intermediate_size": 30}
    found = results([run("mha"), run("mla"), run("mla", **keys)])
    assert list(found) == ["mha", "mla kv_lora_rank=4", "mla kv_lora_rank=8"]
    assert results([run("mla"), run("mla", seed=1)]).keys() == {"mla"}


def test_what_else_differs_is_said():
    runs = [run("mha"), run("gqa", optim__learning_rate=0.004)]
    runs[1].row["num_parameters"] = 1200
    (group,) = compare(runs, None)
    assert group.differs == [
        "learning rate (optim.learning_rate): 0.008 (mha), 0.004 (gqa)",
        "parameters: from 1,000 to 1,200",
    ]
    assert not any("every other setting" in text or "rate" in text for text in group.held_equal)
    dropouts = [
        run(n, model__attention__attention_dropout=p) for n, p in (("mha", 0.0), ("gqa", 0.1))
    ]
    dropout = compare(dropouts, None)
    assert dropout[0].differs == [
        "attention dropout (model.attention.attention_dropout): 0.0 (mha), 0.1 (gqa)"
    ]
    seeds = compare([run("mha", 0), run("gqa", 1)], None)[0].held_equal
    assert not any("every other setting" in text for text in seeds)
    same = compare(study(mha=0.0, gqa=0.1), None)[0].held_equal
    assert any("every other setting" in text for text in same)
    # Where a run was made, and what was watched, is no difference.
    runs = [run("mha"), run("gqa", tracking__wandb=False, trainer__num_threads=2)]
    assert compare(runs, None)[0].differs == []


def test_two_seeds_give_no_verdict_and_the_headline_says_what_they_can_show():
    runs = [run(name, seed, by) for name, by in (("mha", 0), ("gqa", 9)) for seed in (0, 1)]
    found = results(runs)["gqa"]
    assert (found["verdict"], found["delta_percent_ci95_seeds"][0] > 0) == ("too few seeds", True)
    said = headline([*results(runs).values()])
    assert "from too few seeds for a verdict (3 on each side are needed)" in said
    assert not {"Better", "Worse", "Equivalent", "Unresolved"} & {*said.split()}
    shown = f"{found['minimum_detectable_percent']:.2g} %."
    [group] = compare(runs, None)
    assert f"Minimum detectable difference against mha, at 80 % power: {shown}" in group.how_sure
    # The side with fewer seeds decides.
    lopsided = [*study(mha=0.0), run("gqa", 7, 9.0), run("gqa", 8, 9.0)]
    assert results(lopsided)["gqa"]["verdict"] == "too few seeds"
    # With one seed there is no spread.
    [group] = compare([run("mha"), run("gqa")], None)
    assert "detectable" not in " ".join(group.how_sure)


def twice(ours, theirs, **rows):
    """Three seeds of each, the second with other settings or other values in its rows."""
    runs = [run("mha", seed, **theirs) for seed in range(3)]
    others = [run("gqa", seed, 0.1, **ours) for seed in range(3)]
    for one in others:
        one.row.update(rows)
    return [*runs, *others]


@pytest.mark.parametrize(
    ("ours", "rows", "said"),
    [
        ({}, {"tokens_trained": 123456}, "tokens trained (4,096 and 123,456)"),
        ({}, {"num_parameters": 1200}, "parameters (1,000 and 1,200)"),
        ({"begins_with": "mha"}, {}, "begins with (random weights and mha)"),
        (
            {"model__max_position_embeddings": 16},
            {},
            "max position embeddings (model.max_position_embeddings) (8 and 16)",
        ),
        (
            {"trainer__sequences_per_step": 9},
            {},
            "sequences per step (trainer.sequences_per_step) (8 and 9)",
        ),
        (
            {"trainer__overfit_batches": 2},
            {},
            f"overfit batches (trainer.overfit_batches) ({NONE} and 2)",
        ),
        (
            {"data__max_train_tokens": 9},
            {},
            f"max train tokens (data.max_train_tokens) ({NONE} and 9)",
        ),
        ({"optim__learning_rate": 0.1}, {}, "learning rate (optim.learning_rate) (0.008 and 0.1)"),
    ],
)
def test_what_was_not_trained_alike_is_not_ranked(ours, rows, said):
    theirs = {
        **{"begins_with": "random weights", "trainer__sequences_per_step": 8},
        **{"trainer__overfit_batches": None, "data__max_train_tokens": None},
    }
    (group,) = compare(twice(theirs | ours, theirs, **rows), None)
    assert group.unranked == [said]
    found = group.results[1]
    assert found["verdict"] == group.pairs[0]["verdict"] == "not comparable"
    sentences = headline(group.results, group.unranked)
    assert f"not ranked, since they differ in {said}." in sentences
    assert "against MHA" in sentences
    assert "but is not comparable: " in sentences
    assert f"{found['delta_percent']:+.2f} %" in sentences
    for word in ("lowest", "Worse", "Better", "smallest"):
        assert word not in sentences


@pytest.mark.parametrize(
    "ours",
    [
        {"trainer__num_threads": 2},
        {"data__path": "elsewhere"},  # the same data, as their fingerprint says
        {"fair_lr": True, "optim__learning_rate": 0.1},
        {"trainer__max_tokens": 4000},  # as many steps
        {"model__intermediate_size": 25},  # what match=params sets
    ],
)
def test_what_changes_nothing_or_was_made_fair_is_ranked(ours):
    theirs = {
        **{"fair_lr": "fair_lr" in ours, "data__path": "here", "trainer__num_threads": 1},
    }
    (group,) = compare(twice(theirs | ours, theirs), None)
    assert group.unranked == []
    assert group.results[1]["verdict"] == "worse"
    assert "MHA has the lowest perplexity" in headline(group.results, group.unranked)


@pytest.mark.parametrize(
    ("tokens", "verdicts"), [(4096, {"better", "worse"}), (99, {"not comparable"})]
)
def test_two_recipes_of_one_attention_are_ranked_but_not_two_lengths(tokens, verdicts):
    runs = [run("gqa", seed) for seed in range(3)]
    others = [run("gqa", seed, 0.1, optim__name="adamw") for seed in range(3)]
    for other in others:
        other.row["tokens_trained"] = tokens
    (group,) = compare([*runs, *others], None)
    assert {pair["verdict"] for pair in group.pairs} <= verdicts


def test_every_pair_is_compared_by_an_interval_that_allows_for_all_of_them():
    runs = study(mha=0.0, gqa=0.05, mla=0.2)
    (group,) = compare(runs, None)
    found = {(pair["variant"], pair["against"]): pair for pair in group.pairs}
    assert [*found] == [("gqa", "mha"), ("mla", "mha"), ("mla", "gqa")]
    against_gqa = results(runs, "gqa")["mla"]
    same = ("delta_nll", "delta_nll_ci95_text", "delta_nll_ci95_alone", "verdict", "unequal")
    assert all(against_gqa[key] == found["mla", "gqa"][key] for key in same)
    of_pair = estimate(by_label(runs)).of_pair("mla", "gqa")
    assert found["mla", "gqa"]["delta_nll_ci95_seeds"] == pytest.approx(of_pair.interval)
    wide, narrow = found["mla", "gqa"]["delta_nll_ci95_seeds"], against_gqa["delta_nll_ci95_seeds"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    shown = drawn(pair_table(group.pairs))
    line = shown.splitlines()[-1]
    assert line.split()[1:6:2] == ["mla", "gqa", f"{against_gqa['delta_percent']:+.2f}"]
    assert line.endswith("| worse   |")


def test_the_documents_that_carry_a_difference_are_named():
    runs = study(mha=0.0, gqa=0.0)
    for one in runs[3:]:
        one.windows.document_nll[7] += 40.0
        one.row["nll"] += 40.0 / (WINDOWS * TOKENS)
    (group,) = compare(runs, None)
    found = group.results[1]
    first = found["influential_documents"][0]
    assert (first["document"], first["name"], first["tokens"]) == (7, "document 8", TOKENS)
    without = (
        found["delta_nll"] * WINDOWS
        - np.mean(
            [
                (b.windows.document_nll[7] - a.windows.document_nll[7]) / TOKENS
                for a, b in zip(runs[:3], runs[3:], strict=True)
            ]
        )
    ) / (WINDOWS - 1)
    assert first["delta_percent_without"] == pytest.approx(100 * math.expm1(without))
    assert abs(without) < 0.1 * found["delta_nll"]
    shown = drawn(influence_table(group.results))
    assert f"{first['delta_percent_without']:+.2f} %" in shown.splitlines()[2]
    assert "these 3 together" in shown
    assert influence_table([group.results[0]]).rows == []


def test_a_text_of_few_documents_has_no_interval_and_the_report_says_why():
    runs = study(mha=0.0, gqa=0.05)
    for one in runs:
        score = one.windows
        few = {"document_nll": score.document_nll[:9], "document_tokens": [TOKENS] * 9}
        object.__setattr__(one, "windows", dataclasses.replace(score, **few))
    found = list(results(runs).values())
    assert found[1]["delta_percent_ci95_text"] is None
    assert found[1]["verdict"] == "worse"  # by the seeds
    said = note(found)
    assert "No interval over the text: the split has 9 documents, and an interval takes" in said
    assert "No interval" not in note(list(results(study(mha=0.0)).values()))


def test_the_headline_says_what_the_cache_cost():
    found = results([*study(mha=0.0, gqa=0.0, mla=0.05, mqa=-0.05), run("mla_no_rope", 0, 0.1)])
    mixed = headline(list(found.values()))
    assert re.search(r"mla_no_rope measures \+10.* over seeds, single seed\) with", mixed)
    text = headline(list(results(study(mha=0.0, gqa=0.0, mla=0.05, mqa=-0.05)).values()))
    assert text.startswith(
        "Of 4 variants trained on 4,096 tokens with three seeds each, MQA has the lowest perplexity"
    )
    number = r"[+-]\d\.\d\d"
    sure = rf"95 % interval {number} to {number} over three seeds\)"
    for said in (
        rf"MQA's perplexity is \d\.\d\d % below MHA's \({sure} with 0\.25 of the cache\.",
        rf"GQA is equivalent within 1 % to MHA \({number} %, {sure} with 0\.5 of the cache\.",
        rf"MLA's perplexity is 5\.\d\d % above MHA's \({sure} with 0\.188 of the cache\.",
    ):
        assert re.search(said, text)
    many = headline([*results(study(mha=0.0, gqa=0.1, mla=0.1, mqa=0.1)).values()])
    assert re.search(
        r"Worse than MHA, with 95 % intervals over three seeds: GQA .* cache; MQA", many
    )
    assert headline(list(results([run(scored=False)]).values())) == ""
    alone = list(results([run("mla")]).values())
    assert re.fullmatch(
        r"MLA, trained on 4,096 tokens, one seed: perplexity 7\.\d\d\.", headline(alone)
    )
    assert "| of MHA's |" in drawn(comparison(alone)).splitlines()[0]
    assert "0.188" in drawn(comparison(alone))


def test_tables_hold_the_numbers():
    runs = study(mha=0.0, mla=0.05)
    found = list(results(runs).values())
    lines = drawn(comparison(found)).splitlines()
    assert f"{found[1]['perplexity']:.2f}" in lines[3]
    assert f"{found[1]['delta_percent']:+.2f} %" in lines[3]
    assert "worse" in lines[3]
    assert "0.188" in lines[3]
    costs = drawn(comparison(found))
    assert "tokens/s" in costs
    assert "| 101 |" in " ".join(costs.split())
    budget = drawn(budget_table(found))
    assert f"{found[0]['budget']['total']:,}" in budget
    every = drawn(run_table([one.row for one in runs]))
    assert every.count("mla-seed") == 3
    assert every.count("mha-seed") == 6  # each twice: itself, and what mla is compared with


def test_decoding_is_timed_once_for_equal_models_and_compared_with_the_baseline():
    groups = compare([*study(mha=0.0, mla=0.05), run("mla", optim__learning_rate=0.1)], None)
    decode = DecodeSettings(batch_sizes=[1, 2], contexts=[4, 20], rounds=2, steps=1)
    lines = []
    add_decode_speed(groups, EvalSettings(decode_speed=decode), torch.device("cpu"), lines.append)
    mha, *latent = groups[0].variants
    assert latent[0].result["decode"] == latent[1].result["decode"]
    assert latent[0].result["decode"] != mha.result["decode"]
    assert mha.result["break_even"] == {"1": None, "2": None}
    assert latent[0].result["break_even"].keys() == {"1", "2"}
    assert all(one.row["decode"] == mha.result["decode"] for one in mha.runs)
    headings = drawn(comparison(groups[0].results)).splitlines()[0]
    assert "ms/token, batch 1, at 4" in headings
    assert "ms/token, batch 1, at 20" in headings
    assert "batch 2" not in headings


FACTS = {"Command": "python eval_model.py", "Date": "2026-01-01"}


def test_the_protocol_line_says_what_the_card_does():
    row = {"tokens_scored": 99, "protocol": CARD}
    assert protocol_line(row).startswith(
        "tiny, validation split: 99 tokens scored, each once, context 8, stride 8, float32; 1,000 "
        "words, 5,000 bytes; tokenizer aaaaaaaaaaaa, data bbbbbbbbbbbb"
    )
    within = row | {"protocol": CARD | {"intra_document_mask": True}}
    assert "float32, attention within documents;" in protocol_line(within)
    cached = row | {"protocol": CARD | {"decode_path": "token by token, int8 cache"}}
    assert "float32, token by token, int8 cache;" in protocol_line(cached)


def test_a_report_holds_rows_windows_plots_and_pages(tmp_path):
    groups = compare(study(mha=0.0, mla=0.05), None)
    tmp_path = new_report(tmp_path, "x", groups, FACTS)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "variants.json", "windows.json", "report.md", "report.html"),
        *("documents.json", "pairs.json"),
        *("difference.png", "curves.png", "results.csv", "table.tex", "figures"),
    }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "difference.pdf",
        "curves.pdf",
    }
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["run_name"] for row in rows] == [
        f"{name}-seed{seed}" for name in ("mha", "mla") for seed in (0, 1, 2)
    ]
    for row, name in itertools.product(rows, ("windows", "documents")):
        found = json.loads((tmp_path / f"{name}.json").read_text())[row["run_name"]]
        assert math.fsum(found["nll"]) / sum(found["tokens"]) == pytest.approx(row["nll"])
    text = (tmp_path / "report.md").read_text()
    for part in (
        *("above MHA's", "## Budget", "Every run", "## Protocol", "## Samples"),
        *("Held equal", "- Command: `python eval_model.py`", "- stride: `8`", "difference.png"),
    ):
        assert part in text, part
    # Both pages name the files next to them.
    for page in (text, (tmp_path / "report.html").read_text()):
        for name in ("figures/", "table.tex", "results.csv"):
            assert name in page


def test_a_sample_cannot_end_its_fence(tmp_path):
    one = run("mha")
    one = dataclasses.replace(one, sample="```\n# heading")
    tmp_path = new_report(tmp_path, "x", compare([one], None), FACTS)
    assert "````text\n```\n# heading\n````" in (tmp_path / "report.md").read_text()


def test_groups_have_tables_of_their_own(tmp_path):
    groups = compare([run("mha"), run("gqa", card=CARD | {"context": 16})], None)
    tmp_path = new_report(tmp_path, "x", groups, FACTS)
    page = (tmp_path / "report.html").read_text()
    for name in ("mha", "gqa"):
        assert f"tiny, validation split: {name.upper()}, trained on" in page
    text = (tmp_path / "report.md").read_text()
    assert text.count("| variant") == 6  # a comparison, other units and a budget each
    assert "context 16" in text
    for name in ("curves.png", "curves-2.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_a_report_without_perplexity_shows_the_cache(tmp_path):
    groups = compare([run("mha", scored=False), run("mla", scored=False)], None)
    tmp_path = new_report(tmp_path, "x", groups, FACTS)
    text = (tmp_path / "report.md").read_text()
    assert "KV bytes at 8" in text  # the card's context, for rows from before caches had one
    assert re.search(r"^\| mha .*\| +4,096 \| +1\.000 \| +4,096 \| baseline ", text, re.M)
    assert "perplexity" not in text.split("## Training")[0]
    assert not list(tmp_path.glob("[dp]*.png"))
    for name in ("windows", "documents", "pairs"):
        assert not (tmp_path / f"{name}.json").exists()
    assert "Perplexity is" not in text


def test_the_first_plot_of_a_report_may_come_with_its_update(tmp_path):
    bare = dataclasses.replace(run("mha", scored=False), curve={"tokens": [], "perplexity": []})
    groups = compare([bare], None)
    folder = new_report(tmp_path, "x", groups, FACTS)
    assert not (folder / "figures").exists()
    groups[0].results[0] |= {"decode": [decode_point(8)], "break_even": {"1": None}}
    update_report(folder, groups, FACTS)
    assert [path.name for path in (folder / "figures").iterdir()] == ["decode.pdf"]


def test_a_report_that_is_there_is_kept_and_the_next_numbered(tmp_path):
    groups = compare([run("mha")], None)
    folders = [new_report(tmp_path / "reports", "study", groups, FACTS) for _ in range(3)]
    assert [folder.name for folder in folders] == ["study", "study-2", "study-3"]
    assert (folders[1] / "report.md").read_text().startswith("# study-2\n")
    first = (folders[0] / "report.md").read_bytes()
    update_report(folders[1], groups, {"Command": "another"})
    assert "`another`" in (folders[1] / "report.md").read_text()
    assert (folders[0] / "report.md").read_bytes() == first
    assert len(list((tmp_path / "reports").iterdir())) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/study: Not a directory"):
        new_report(tmp_path / "file", "study", groups, FACTS)
    with pytest.raises(EvaluationError, match=r"cannot write to .*file; set reports_dir"):
        require_writable(tmp_path / "file" / "reports")
    require_writable(tmp_path / "not" / "there")
    assert not (tmp_path / "not").exists()
