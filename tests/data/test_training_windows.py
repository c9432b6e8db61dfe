import numpy as np
import pytest
import torch

from data.batches import TrainingWindows
from data.errors import DataError
from data.shards import TokenStream

CONTEXT = 7


@pytest.fixture
def stream(tmp_path):
    # Token i is i, so that a window says where it comes from; two shards, 3 targets left over.
    tokens = np.arange(CONTEXT * 13 + 4, dtype=np.uint16)
    for name, piece in (("a", tokens[:40]), ("b", tokens[40:])):
        np.save(tmp_path / f"{name}.npy", piece)
    return TokenStream([tmp_path / "a.npy", tmp_path / "b.npy"], vocab_size=200)


def test_an_epoch_covers_each_window_once_and_targets_follow_inputs(stream):
    windows = TrainingWindows(stream, CONTEXT, seed=3)
    assert windows.num_windows == 13
    inputs, targets = windows.batch(0, 13)
    assert inputs.shape == targets.shape == (13, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.int64
    assert sorted(inputs.flatten().tolist()) == list(range(CONTEXT * 13))
    torch.testing.assert_close(targets, inputs + 1)
    assert windows.tokens_per_epoch == 91
    assert windows.dropped_tokens == 3


def test_every_epoch_has_its_own_order_of_the_same_windows(stream):
    windows = TrainingWindows(stream, CONTEXT, seed=3)
    epochs = [windows.batch(13 * e, 13)[0][:, 0].tolist() for e in range(3)]
    assert len({tuple(order) for order in epochs}) == 3
    assert all(sorted(order) == sorted(epochs[0]) for order in epochs)


def test_seed_alone_determines_the_order(stream):
    first, again, other = (
        TrainingWindows(stream, CONTEXT, seed).batch(0, 30)[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_access_equals_sequential_reading_across_epochs(stream):
    sequential = TrainingWindows(stream, CONTEXT, seed=5)
    rows = torch.cat([sequential.batch(i, 1)[0] for i in range(40)])
    random_access = TrainingWindows(stream, CONTEXT, seed=5)
    for first, number in ((37, 3), (0, 5), (11, 20), (26, 1), (5, 35)):
        torch.testing.assert_close(
            random_access.batch(first, number)[0], rows[first : first + number]
        )


def test_order_is_the_recorded_one(stream):
    # A change here changes every training run and every resumed one.
    starts = TrainingWindows(stream, CONTEXT, seed=0).batch(0, 13)[0][:, 0] // CONTEXT
    assert starts.tolist() == [8, 11, 6, 3, 0, 7, 10, 12, 4, 1, 5, 2, 9]


def test_stream_shorter_than_a_window_is_refused_with_both_numbers(stream):
    with pytest.raises(DataError, match="has 95 tokens, fewer than the 96"):
        TrainingWindows(stream, 95, seed=0)
    assert TrainingWindows(stream, 94, seed=0).num_windows == 1


@pytest.mark.parametrize(("context", "seed"), [(0, 0), (-1, 0), (7, -1)])
def test_bad_arguments_are_refused(stream, context, seed):
    with pytest.raises(ValueError, match="must be at least"):
        TrainingWindows(stream, context, seed)


def test_negative_samples_are_refused(stream):
    windows = TrainingWindows(stream, CONTEXT, seed=0)
    for first, number in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            windows.batch(first, number)
