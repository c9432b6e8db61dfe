import collections
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from comparing.noise import estimate
from comparing.simultaneous import (
    MOST_SEEDS,
    dunnett_critical,
    minimum_detectable,
    seeds_that_resolve,
    sidak_critical,
    tukey_critical,
)
from comparing.statistics import seed_interval, unpaired_seed_interval

STUDY = Path("docs/results/2026-11-23-study-nano/results.json")
MARGIN = math.log1p(0.01)


def percent(nats):
    return [round(100 * math.expm1(end), 1) for end in nats]


@pytest.fixture(scope="module")
def study():
    """The fifteen numbers of the study of five attentions: nats per token by seed."""
    found = collections.defaultdict(dict)
    for row in json.loads(STUDY.read_text()):
        found[row["attention"]][row["seed"]] = row["nll"]
    return dict(found)


@pytest.mark.parametrize("df", [1, 2, 10, 100])
def test_of_one_comparison_both_critical_values_are_students(df):
    expected = stats.t.ppf(0.975, df)
    assert dunnett_critical((3,), 3, df) == pytest.approx(expected, rel=1e-5)
    assert tukey_critical(2, df) == pytest.approx(expected, rel=1e-5)
    assert sidak_critical(1, df) == pytest.approx(expected)


def test_critical_values_are_scipys():
    for variants, df in ((5, 10), (3, 2)):
        expected = stats.studentized_range.ppf(0.95, variants, df) / math.sqrt(2)
        assert tukey_critical(variants, df) == pytest.approx(expected, rel=1e-6)
    rng = np.random.default_rng(0)
    base, *others = (rng.normal(size=n) for n in (4, 2, 3, 6))
    interval = stats.dunnett(*others, control=base, rng=rng).confidence_interval(0.95)
    df = sum(len(some) - 1 for some in (base, *others))
    pooled = sum(some.var(ddof=1) * (len(some) - 1) for some in (base, *others)) / df
    for some, low, high in zip(others, interval.low, interval.high, strict=True):
        reach = dunnett_critical((2, 3, 6), 4, df) * math.sqrt(pooled * (1 / len(some) + 1 / 4))
        assert (high - low) / 2 == pytest.approx(reach, rel=5e-3)


def test_the_studys_numbers_are_those_that_were_computed_independently(study):
    noise = estimate(study)
    assert (noise.method, noise.df) == ("pooled", 10)
    assert noise.bartlett == pytest.approx(0.526, abs=1e-3)
    assert noise.seed_effect == pytest.approx(0.867, abs=1e-3)
    assert 100 * noise.deviation == pytest.approx(0.93, abs=5e-3)
    mla, mha = ([*study[name].values()] for name in ("mla", "mha"))
    paired = seed_interval([a - b for a, b in zip(mla, mha, strict=True)])
    assert percent(paired) == [-0.5, 6.8]
    assert percent(unpaired_seed_interval(mla, mha)) == [0.5, 5.7]
    two = estimate({name: study[name] for name in ("mla", "mha")})  # pooled over these two
    assert percent(two.to_baseline("mla", "mha").interval) == [1.1, 5.1]
    assert percent(noise.to_baseline("mla", "mha").interval) == [0.8, 5.4]
    assert percent(noise.to_baseline("mqa", "mha").interval) == [4.4, 9.1]
    against_gqa = noise.of_pair("mla", "gqa")
    expected = stats.tukey_hsd(*([*some.values()] for some in study.values())).confidence_interval(
        0.95
    )
    one, other = (list(study).index(name) for name in ("mla", "gqa"))
    assert against_gqa.interval == pytest.approx(
        (expected.low[one, other], expected.high[one, other]), abs=1e-6
    )
    assert against_gqa.further_seeds(MARGIN) == 7


def test_what_three_seeds_see_at_eighty_percent_power(study):
    paired = np.subtract([*study["mla"].values()], [*study["mha"].values()])
    assert paired.std(ddof=1) == pytest.approx(0.0142, abs=1e-4)
    error = 0.0123 / math.sqrt(3)  # pooled over the four differences of the study
    found = minimum_detectable(stats.t.ppf(0.975, 2), error, 2)
    assert percent([found]) == [4.1]
    # What it promises: of normal samples, so many leave 0 out.
    rng = np.random.default_rng(0)
    differences = found + 0.0123 * rng.normal(size=(4000, 3))
    seen = stats.ttest_1samp(differences, 0, axis=1).confidence_interval(0.95).low > 0
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


def test_seeds_to_resolve_are_the_fewest_that_do():
    def plan(seeds):  # two-sample t of two variants with a deviation of 0.93 %
        df = 5 * (seeds - 1)
        return stats.t.ppf(0.975, df), 0.0093 * math.sqrt(2 / seeds), df

    needed = {size: seeds_that_resolve(size, MARGIN, 2, plan) for size in (0.03, 0.02, 0.01)}
    assert needed == {0.03: 3, 0.02: 4, 0.01: 14}
    for size, seeds in needed.items():
        assert minimum_detectable(*plan(seeds)) <= size < minimum_detectable(*plan(seeds - 1))
    # Equal models are shown to be equivalent, and those at the margin never.
    assert seeds_that_resolve(0.0, MARGIN, 2, plan) == 19
    assert seeds_that_resolve(1e-5, 1e-5, 2, plan) is None
    assert MOST_SEEDS == 1000


def by_seed(*values, first=0):
    return dict(enumerate(values, start=first))


UNEQUAL = {"a": by_seed(1.0, 1.001, 1.0003), "b": by_seed(1.5, 1.1, 1.4), "c": by_seed(1.2)}
MOVED = {"a": by_seed(1.0, 1.2, 1.4), "b": by_seed(1.1, 1.301, 1.499), "c": by_seed(1, 1.2, 1.401)}


def test_variances_that_differ_are_not_pooled():
    noise = estimate(UNEQUAL)
    assert noise.method == "welch"
    assert noise.bartlett < 0.05
    found = noise.to_baseline("b", "a")
    own = stats.ttest_ind([*UNEQUAL["b"].values()], [*UNEQUAL["a"].values()], equal_var=False)
    alone = own.confidence_interval(0.95**0.5)  # Sidak's level for two comparisons
    assert found.interval == pytest.approx((alone.low, alone.high))
    assert found.method == "Sidak, welch"
    assert noise.to_baseline("c", "a") is None  # one seed has no variance of its own


def test_seeds_pair_only_where_they_move_all_variants_alike(study):
    noise = estimate(MOVED)
    assert (noise.method, noise.df) == ("paired", 4)
    narrow = noise.to_baseline("b", "a").interval
    assert 0.09 < narrow[0] < narrow[1] < 0.11
    # The same numbers of other seeds are not paired, and resolve nothing.
    other = MOVED | {"b": by_seed(*MOVED["b"].values(), first=3)}
    assert estimate(other).method == "pooled"
    assert estimate(other).to_baseline("b", "a").interval[0] < 0
    assert estimate(study).method == "pooled"


def test_two_variants_paired_are_students_paired_t():
    two = {name: MOVED[name] for name in ("a", "b")}
    differences = np.subtract([*two["b"].values()], [*two["a"].values()])
    assert estimate(two).to_baseline("b", "a").interval == pytest.approx(
        seed_interval(differences.tolist())
    )


def test_seeds_of_one_value_say_nothing_of_the_noise():
    same = by_seed(1.0, 1.0, 1.0)
    assert estimate({"a": same, "b": same}) is None
    assert estimate({"a": by_seed(1.0), "b": by_seed(1.1)}) is None
    noise = estimate({"a": same, "b": by_seed(1.1, 1.2, 1.15)})
    assert (noise.constant, noise.df, noise.bartlett) == (["a"], 2, None)
    assert all(map(math.isfinite, noise.to_baseline("b", "a").interval))
    assert noise.to_baseline("b", "a").df == 2
    # Differences that are exactly constant are no proof that nothing is noise.
    assert estimate({"a": by_seed(1.0, 1.5, 2.0), "b": by_seed(2.0, 2.5, 3.0)}).method == "pooled"


def test_each_variant_counts_with_its_own_seeds():
    noise = estimate({"a": by_seed(1.0, 1.1, 1.2, 1.15), "b": by_seed(1.1, 1.2), "c": by_seed(1.1)})
    assert (noise.method, noise.df, noise.seed_effect) == ("pooled", 4, None)
    wide, wider = (noise.to_baseline(name, "a") for name in ("b", "c"))
    assert wider.minimum_detectable > wide.minimum_detectable
    assert (wide.fewest_seeds, wider.fewest_seeds) == (2, 1)
