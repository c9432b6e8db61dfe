import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.batches import Permutation


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_each_number_comes_once(size, seed):
    values = Permutation(size, seed, 1)(np.arange(size))
    assert values.dtype == np.int64
    assert np.array_equal(np.sort(values), np.arange(size))


def test_one_index_at_a_time_gives_the_same():
    permutation = Permutation(1000, 5)
    together = permutation(np.arange(1000))
    assert [int(permutation(np.array([i]))[0]) for i in range(0, 1000, 37)] == (
        together[::37].tolist()
    )


def test_huge_ranges_need_no_memory():
    permutation = Permutation(2**62, 7)
    values = permutation(np.arange(0, 2**62, 2**52)[:1000])
    assert len(set(values.tolist())) == 1000
    assert values.min() >= 0
    # Uniform over the range, as chance would have it.
    assert stats.kstest(values / 2**62, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("size", [5, 16, 23])
def test_every_place_is_as_likely_for_every_index(size):
    orders = np.stack([Permutation(size, seed, 3)(np.arange(size)) for seed in range(1500)])
    for index in (0, 1, size - 1):
        counts = np.bincount(orders[:, index], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-5
    # Neighbours do not stay neighbours.
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)[1:]
    assert stats.chisquare(steps).pvalue > 1e-5


def test_bad_sizes_and_indices_are_refused():
    for size in (0, 2**62 + 1):
        with pytest.raises(ValueError, match="size"):
            Permutation(size, 0)
    with pytest.raises(IndexError, match="index 5 of a permutation of 5"):
        Permutation(5, 0)(np.array([5]))
