"""What a report says of its own resolution, on input that resolves little or nothing."""

import dataclasses
import json
import math

import pytest

from comparing.families import families_of
from comparing.variants import compare
from tests.comparing.test_variants import TOKENS, WINDOWS, run, study


def with_nll(one, nats):
    """The same run with so many nats per token, in each document."""
    each = [TOKENS * nats] * WINDOWS
    windows = dataclasses.replace(
        one.windows, nll_sum=sum(each), window_nll=each, document_nll=each
    )
    row = one.row | {"nll": nats, "perplexity": math.exp(nats)}
    return dataclasses.replace(one, row=row, windows=windows)


def seeds_of(name, *nats):
    return [with_nll(run(name, seed), each) for seed, each in enumerate(nats)]


def compared(*runs, margin=0.01):
    (group,) = compare([one for some in runs for one in some], None, margin=margin)
    json.dumps([group.results, group.pairs], allow_nan=False)
    return {result["name"]: result for result in group.results}, " ".join(group.how_sure)


NOISY = (3.0, 3.03, 2.98)


def test_one_seed_each_is_said_and_judged_by_nothing():
    found, said = compared(seeds_of("mha", 3.0), seeds_of("gqa", 3.1))
    assert found["gqa"]["verdict"] == "too few seeds"
    assert found["gqa"]["delta_nll_ci95_seeds"] is None
    assert found["gqa"]["minimum_detectable_nll"] is found["gqa"]["seeds_to_resolve"] is None
    assert said.startswith("One seed each of mha, gqa: how far another seed would move them is not")


def test_a_variant_of_one_seed_is_judged_by_the_noise_of_the_others():
    found, said = compared(seeds_of("mha", *NOISY), seeds_of("gqa", 3.3))
    assert found["gqa"]["verdict"] == "too few seeds"
    low, high = found["gqa"]["delta_nll_ci95_seeds"]
    assert 0 < low < high
    assert found["gqa"]["delta_nll_ci95_alone"] is None
    assert found["gqa"]["seeds_to_resolve"] == 2  # three are the fewest
    assert "Numbers of seeds differ (mha 3, gqa 1)" in said


def test_a_variant_without_variance_says_nothing_of_the_noise():
    found, said = compared(seeds_of("mha", *NOISY), seeds_of("gqa", 3.3, 3.3, 3.3))
    assert found["gqa"]["verdict"] == "worse"
    assert "All seeds of gqa gave the same perplexity, which says nothing of the noise" in said
    same = (3.0, 3.0, 3.0)
    found, said = compared(seeds_of("mha", *same), seeds_of("gqa", 3.3, 3.3, 3.3))
    assert (found["gqa"]["verdict"], found["gqa"]["verdict_note"]) == ("unresolved", "no spread")
    assert found["gqa"]["delta_nll_ci95_seeds"] is None
    assert said.startswith("All seeds of mha, gqa gave the same perplexity, so there is no noise")


def test_variances_that_differ_are_said_and_not_pooled():
    found, said = compared(
        seeds_of("mha", 3.0, 3.0001, 2.9999),
        seeds_of("gqa", 3.3, 3.5, 3.1),
        seeds_of("mqa", *NOISY),
    )
    assert found["gqa"]["comparison_method"] == "Sidak, welch"
    assert "each variant has its own variance, since they differ (Bartlett's test p = " in said
    assert "Games-Howell between pairs" in said


def test_a_margin_that_seeds_cannot_resolve_is_said_with_what_it_would_take():
    found, said = compared(seeds_of("mha", *NOISY), seeds_of("gqa", 3.01, 3.0, 2.99))
    assert found["gqa"]["verdict"] == "unresolved"
    assert found["gqa"]["seeds_to_resolve"] > 50
    assert "With these seeds no variant can be shown equivalent within 1 %: the narrowest" in said
    assert "Unresolved against mha, with the further seeds of each variant" in said
    wide, said = compared(seeds_of("mha", *NOISY), seeds_of("gqa", 3.01, 3.0, 2.99), margin=0.2)
    assert wide["gqa"]["verdict"] == "equivalent within 20 %"
    assert "No variant can" not in said
    tiny, said = compared(seeds_of("mha", *NOISY), seeds_of("gqa", 3.03, 2.98, 3.0001), margin=1e-6)
    assert tiny["gqa"]["seeds_to_resolve"] is None
    assert "gqa more than 1,000" in said


def test_more_seeds_are_not_asked_for_where_the_text_is_too_short():
    runs = [*seeds_of("mha", *NOISY), *seeds_of("gqa", 3.3, 3.33, 3.29)]
    for one in runs[3:]:  # a document alone carries the difference
        nats = one.windows.document_nll
        nats[:] = [TOKENS * 3.0] * WINDOWS
        nats[7] += TOKENS * 0.3 * WINDOWS
    found, said = compared(runs)
    assert found["gqa"]["verdict"] == "unresolved"
    assert found["gqa"]["delta_nll_ci95_text"][0] < 0 < found["gqa"]["delta_nll_ci95_seeds"][0]
    assert found["gqa"]["seeds_to_resolve"] == 0
    assert "gqa 0 (the text is what is too short)" in said


def test_seeds_that_move_all_alike_are_paired():
    found, said = compared(
        seeds_of("mha", *NOISY),
        seeds_of("gqa", 3.02, 3.051, 2.999),
        seeds_of("mqa", 3.1, 3.129, 3.08),
    )
    assert found["gqa"]["comparison_method"] == "Dunnett, paired"
    assert found["gqa"]["verdict"] == "worse"
    assert "paired by seed, since a seed moves all 3 variants alike (F test p = " in said


def test_what_may_not_be_ranked_has_no_part_in_the_noise_of_the_others():
    other = [run("mqa", seed, 0.3, optim__learning_rate=0.01) for seed in (0, 1, 2)]
    runs = [*study(mha=0.0, gqa=0.05), *other]
    (group,) = compare(runs, None)
    (family,) = families_of(group.variants)
    assert [variant.label for variant in family.variants] == ["mha", "gqa"]
    assert family.noise.df in (2, 4)
    by_name = {variant["name"]: variant for variant in group.results}
    assert by_name["mqa"]["verdict"] == "not comparable"
    assert by_name["mqa"]["comparison_method"] is None
    assert by_name["mqa"]["verdict_note"] == ""
    assert by_name["mqa"]["delta_nll_ci95_seeds"] == by_name["mqa"]["delta_nll_ci95_alone"]


def test_without_a_baseline_pairs_are_a_family_of_all():
    (group,) = compare([*seeds_of("gqa", *NOISY), *seeds_of("mqa", 3.1, 3.13, 3.08)], None)
    (family,) = families_of(group.variants)
    assert (family.baseline, len(family.variants), family.noise.method) == (None, 2, "pooled")
    assert [variant["verdict"] for variant in group.results] == [None, None]
    assert group.pairs[0]["verdict"] == "worse"
    assert group.pairs[0]["comparison_method"] == "Tukey-Kramer, pooled"
    assert "Minimum detectable difference between pairs, at 80 % power: " in " ".join(
        group.how_sure
    )


def test_a_run_that_diverged_leaves_the_others_their_noise():
    found, said = compared(
        seeds_of("mha", *NOISY), seeds_of("gqa", 3.2, 3.17, 3.21), seeds_of("mqa", 9.0, 12.0, 3.1)
    )
    assert found["gqa"]["comparison_method"] == "Sidak, welch"
    assert found["gqa"]["verdict"] == "worse"
    assert found["mqa"]["verdict"] == "unresolved"
    assert "e+" not in said


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01, math.nan, math.inf])
def test_a_margin_out_of_its_range_is_refused(margin):
    from settings.evaluation import EvalSettings

    (problem,) = EvalSettings(margin=margin).problems()
    assert problem.startswith(f"eval.margin ({margin}) must be above 0 and below 1")
