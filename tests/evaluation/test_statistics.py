import math

import numpy as np
import pytest
from scipy import stats

import evaluation.statistics
from evaluation.statistics import (
    FEWEST_BLOCKS,
    block_length,
    seed_interval,
    standard_deviation,
    text_interval,
    unpaired_seed_interval,
    verdict,
)

TOKENS = 256


def correlated(rng, count, correlation):
    """Noise of variance 1 in which neighbours resemble each other."""
    noise = rng.normal(size=count)
    values = np.empty(count)
    values[0] = noise[0]
    for i in range(1, count):
        values[i] = correlation * values[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    return values


@pytest.fixture
def fewer_resamples(monkeypatch):
    """Enough for a hundred trials; the interval's own noise widens the spread a little."""
    monkeypatch.setattr(evaluation.statistics, "_RESAMPLES", 999)


def share_that_holds(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize(("count", "correlation"), [(367, 0.0), (367, 0.5), (1500, 0.6)])
def test_the_interval_over_text_holds_a_known_difference_in_about_95_of_100_trials(
    fewer_resamples, count, correlation
):
    rng, truth, trials = np.random.default_rng(0), 0.03, 300
    found = []
    for _ in range(trials):
        text = correlated(rng, count, 0.5)  # shared by both models: pairing removes it
        ours = 3.7 + truth + 0.5 * text + 0.05 * correlated(rng, count, correlation)
        theirs = 3.7 + 0.5 * text
        found.append(text_interval(TOKENS * (ours - theirs), [TOKENS] * count, TOKENS))
    # 300 trials of 95 % have a standard deviation of 1.3 %; correlation costs a few percent.
    assert 0.90 <= share_that_holds(truth, found) <= 0.985


def test_unlike_resampling_single_windows_which_holds_too_seldom(fewer_resamples, monkeypatch):
    """What the blocks are for; also shows that the test above can fail."""
    monkeypatch.setattr(evaluation.statistics, "block_length", lambda *arguments: 1)
    rng = np.random.default_rng(0)
    found = [
        text_interval(TOKENS * (0.03 + 0.05 * correlated(rng, 367, 0.6)), [TOKENS] * 367, TOKENS)
        for _ in range(300)
    ]
    assert share_that_holds(0.03, found) < 0.85


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_over_seeds_holds_a_known_difference_in_about_95_of_100_trials(seeds):
    rng = np.random.default_rng(1)
    found = [seed_interval((0.02 + 0.01 * rng.normal(size=seeds)).tolist()) for _ in range(1000)]
    assert 0.93 <= share_that_holds(0.02, found) <= 0.97


def test_the_paired_interval_is_narrower_than_that_of_either():
    rng = np.random.default_rng(2)
    theirs = TOKENS * (3.7 + 0.5 * rng.normal(size=400))
    ours = theirs + TOKENS * (0.02 + 0.02 * rng.normal(size=400))

    def width(nats):
        low, high = text_interval(nats, [TOKENS] * 400, TOKENS)
        return high - low

    assert width(ours - theirs) < width(ours) / 10
    low, high = text_interval(ours - theirs, [TOKENS] * 400, TOKENS)
    assert low < (ours - theirs).sum() / (400 * TOKENS) < high


def test_windows_of_unequal_length_weigh_by_their_tokens():
    nats, tokens = [200.0, 40.0] * 120, [100, 10] * 120  # 2 and 4 nats a token
    assert block_length(tokens, 100) % 2 == 0  # so every block holds both kinds alike
    interval = text_interval(nats, tokens, 100)
    assert interval == pytest.approx((240 / 110, 240 / 110))


def test_independent_windows_agree_with_students_t():
    """Another way to the same interval, where blocks are single windows in effect."""
    rates = 3.7 + 0.5 * np.random.default_rng(3).normal(size=3000)
    low, high = text_interval(TOKENS * rates, [TOKENS] * 3000, TOKENS)
    expected = stats.t.interval(0.95, 2999, rates.mean(), rates.std(ddof=1) / math.sqrt(3000))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.25)


def test_the_same_windows_give_the_same_interval():
    nats = TOKENS * np.random.default_rng(4).normal(3.7, 0.5, 200)
    one, other = (text_interval(nats, [TOKENS] * 200, TOKENS) for _ in range(2))
    assert one == other


def test_equal_models_differ_by_nothing_at_all():
    assert text_interval([0.0] * 200, [TOKENS] * 200, TOKENS) == (0.0, 0.0)


def test_a_short_text_has_no_interval():
    assert text_interval([1.0, 2.0] * 8, [TOKENS] * 16, TOKENS) is None
    assert text_interval([1.0], [7], TOKENS) is None


@pytest.mark.parametrize(
    ("count", "tokens", "context", "expected"),
    [
        (1000, 256, 256, 20),  # twice the cube root
        (64_000, 4, 256, 20 * 64),  # strided windows: as many tokens
        (1, 256, 256, 2),
    ],
)
def test_blocks_grow_with_the_text_and_cover_a_context(count, tokens, context, expected):
    assert block_length([tokens] * count, context) == expected
    assert FEWEST_BLOCKS == 10


def test_a_shorter_stride_makes_no_text_longer(fewer_resamples):
    """Overlapping windows say the same again."""
    tokens = 0.5 * correlated(np.random.default_rng(5), 64 * 1000, 0.98)

    def width(stride):
        nats = tokens.reshape(-1, stride).sum(axis=1)
        low, high = text_interval(nats, [stride] * len(nats), 64)
        return high - low

    assert width(4) == pytest.approx(width(64), rel=0.15)


def test_where_no_seed_is_shared_it_is_welchs_t():
    ours, theirs = [3.70, 3.72, 3.75], [3.60, 3.61]
    low, high = unpaired_seed_interval(ours, theirs)
    variances = np.var(ours, ddof=1) / 3, np.var(theirs, ddof=1) / 2
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    difference = np.mean(ours) - np.mean(theirs)
    assert (low, high) == pytest.approx((difference - half, difference + half))
    assert unpaired_seed_interval(ours, [3.6]) is None
    assert unpaired_seed_interval([3.7, 3.7], [3.6, 3.6]) == pytest.approx((0.1, 0.1))


def test_over_seeds_it_is_students_t():
    values = [3.70, 3.72, 3.75]
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(3)
    # 4.302653 is the 97.5 % quantile with two degrees of freedom, from a table.
    expected = (mean - 4.302653 * error, mean + 4.302653 * error)
    assert seed_interval(values) == pytest.approx(expected, rel=1e-6)
    assert standard_deviation(values) == pytest.approx(0.0251661, rel=1e-5)
    assert seed_interval([3.7]) is None
    assert standard_deviation([3.7]) is None
    assert seed_interval([3.7, 3.7]) == (3.7, 3.7)


@pytest.mark.parametrize(
    ("difference", "intervals", "expected"),
    [
        (0.02, [(0.01, 0.03), (0.005, 0.035)], "worse"),
        (-0.02, [(-0.03, -0.01), None], "better"),
        (0.02, [(-0.01, 0.05), (0.01, 0.03)], "indistinguishable"),
        (0.02, [(0.01, 0.03), (-0.01, 0.05)], "indistinguishable"),
        (0.0, [(0.0, 0.0), None], "indistinguishable"),
        (0.02, [None, None], None),
    ],
)
def test_verdict(difference, intervals, expected):
    assert verdict(difference, intervals) == expected
