import math

import numpy as np
import pytest
from scipy import stats

from comparing.statistics import (
    FEWEST_DOCUMENTS,
    kind_of,
    most_influential,
    seed_interval,
    standard_deviation,
    text_interval,
    unpaired_seed_interval,
    verdict,
)


def a_text(rng, count):
    """Documents whose lengths differ a thousandfold, each with a rate and a difference of its own.

    Both go with the length: the ratio of sums is not the mean of the ratios.
    """
    size = rng.normal(size=count)
    tokens = np.ceil(800 * np.exp(1.2 * size))
    rates = 3.7 - 0.1 * size + 0.4 * rng.normal(size=count)
    differences = 0.03 - 0.005 * size + 0.03 * rng.normal(size=count)
    return tokens, rates, differences


def share_that_holds(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize("what", ["rates", "differences"])
@pytest.mark.parametrize("count", [12, 31, 200])
def test_the_interval_over_text_holds_the_truth_in_about_95_of_100_trials(count, what):
    rng, trials = np.random.default_rng(0), 400
    # Per token, over a text without end: documents count by length, which shifts `size` by 1.2.
    truth = 3.7 - 0.1 * 1.2 if what == "rates" else 0.03 - 0.005 * 1.2
    found = []
    for _ in range(trials):
        tokens, rates, differences = a_text(rng, count)
        values = rates if what == "rates" else differences
        found.append(text_interval(tokens * values, tokens))
    # 400 trials of 95 % have a standard deviation of 1.1 %; few long documents cost a few percent.
    assert 0.91 <= share_that_holds(truth, found) <= 0.99


def test_unlike_resampling_windows_which_holds_too_seldom():
    """What documents are for; also shows that the test above can fail."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        tokens, rates, _ = a_text(rng, 31)
        windows = np.repeat(rates, np.ceil(tokens / 256).astype(int))
        found.append(text_interval(256 * windows, np.full(len(windows), 256)))
    assert share_that_holds(3.7 - 0.1 * 1.2, found) < 0.6


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_over_seeds_holds_a_known_difference_in_about_95_of_100_trials(seeds):
    rng = np.random.default_rng(1)
    found = [seed_interval((0.02 + 0.01 * rng.normal(size=seeds)).tolist()) for _ in range(1000)]
    assert 0.93 <= share_that_holds(0.02, found) <= 0.97


def test_the_paired_interval_is_narrower_than_that_of_either():
    tokens, rates, differences = a_text(np.random.default_rng(2), 400)
    ours, theirs = tokens * (rates + differences), tokens * rates

    def width(nats):
        low, high = text_interval(nats, tokens)
        return high - low

    assert width(ours - theirs) < width(ours) / 5
    low, high = text_interval(ours - theirs, tokens)
    assert low < (ours - theirs).sum() / tokens.sum() < high


def test_documents_of_equal_length_agree_with_students_t():
    """Another way to the same interval."""
    rates = 3.7 + 0.5 * np.random.default_rng(3).normal(size=50)
    expected = stats.t.interval(0.95, 49, rates.mean(), rates.std(ddof=1) / math.sqrt(50))
    assert text_interval(7 * rates, [7] * 50) == pytest.approx(expected, rel=1e-9)


def test_a_document_of_most_tokens_makes_the_interval_wide():
    tokens = np.array([45_000.0, *[10.0] * 30])
    rates = 3.7 + 0.5 * np.random.default_rng(4).normal(size=31)
    low, high = text_interval(tokens * rates, tokens)
    assert high - low > 2 * (0.5 * 1.96)  # it is as good as one document


def test_a_document_without_tokens_is_none():
    tokens, rates, _ = a_text(np.random.default_rng(5), 20)
    expected = text_interval(tokens * rates, tokens)
    assert text_interval([0.0, *(tokens * rates)], [0, *tokens]) == expected
    few = [1.0] * (FEWEST_DOCUMENTS - 1)
    assert text_interval([0.0, *few], [0, *few]) is None


def test_equal_models_differ_by_nothing_at_all():
    assert text_interval([0.0] * 20, [7] * 20) == (0.0, 0.0)


def test_fewer_than_ten_documents_have_no_interval():
    assert text_interval([1.0, 2.0, 3.0] * 3, [7] * 9) is None
    assert text_interval([1.0, 2.0, 3.0, 4.0, 5.0] * 2, [7] * 10) is not None


def test_the_document_that_carries_a_difference_is_found():
    """A long table that one model reads better, among documents without any difference."""
    nats = np.array([0.0, 1.0, -1.0, -500.0, 2.0, 30.0])
    tokens = np.array([100, 100, 100, 1000, 100, 0])
    nats[-1] = 0.0
    first, second = most_influential(nats, tokens, 2)[0]
    assert (first.document, first.without) == (3, pytest.approx(2.0 / 400))
    assert (second.document, second.without) == (4, pytest.approx(-500.0 / 1300))
    assert most_influential(nats, tokens, 2)[1] == pytest.approx(0.0)
    assert most_influential([1.0, 2.0, 3.0], [5, 5, 0], 2) == ([], None)


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
    ("intervals", "seeds", "expected"),
    [
        ([(0.01, 0.03), (0.005, 0.035)], 3, "worse"),
        ([None, (-0.03, -0.01)], 3, "better"),
        ([(-0.01, 0.05), (0.01, 0.03)], 3, "unresolved"),
        ([(0.01, 0.03), (-0.01, 0.05)], 5, "unresolved"),
        ([(0.01, 0.03), (-0.03, -0.01)], 5, "unresolved"),
        ([(0.0, 0.0), None], None, "equivalent within 1 %"),
        ([(-0.009, 0.004), (-0.005, 0.0099)], 3, "equivalent within 1 %"),
        # Nats: 0.00995 are 1 %.
        ([(-0.009, 0.004), (-0.005, 0.00996)], 3, "unresolved"),
        # A difference that is surely smaller than the margin is none that matters.
        ([(0.001, 0.004), (0.002, 0.009)], 3, "equivalent within 1 %"),
        ([(0.001, 0.004), (0.002, 0.011)], 3, "worse"),
        ([(-0.03, -0.01), None], None, "better"),
        ([(0.01, 0.03), (0.005, 0.035)], 2, "too few seeds"),
        ([(-0.03, -0.01), None], 1, "too few seeds"),
        ([None, None], None, None),
    ],
)
def test_verdict(intervals, seeds, expected):
    assert verdict(intervals, seeds, 0.01) == expected


def test_the_margin_is_part_of_the_verdict():
    assert verdict([(0.001, 0.004)], 3, 0.005) == "equivalent within 0.5 %"
    assert verdict([(0.001, 0.004)], 3, 0.002) == "worse"
    assert {kind_of("equivalent within 0.5 %"), kind_of("worse"), kind_of(None)} == {
        *("equivalent", "worse", None)
    }
