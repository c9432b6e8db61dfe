import math
import threading

import numpy as np
import pytest
import torch

from data.batches import MIXTURE_BLOCK, TrainingWindows, read_ahead
from data.errors import DataError
from data.shards.stream import TokenStream

CONTEXT = 7
RECORDED = [12, 6, 8, 9, 0, 2, 5, 7, 3, 10, 1, 11, 4, 8, 12, 7, 9, 1, 4, 2, 6, 0, 11, 3, 10, 5]
RECORDED_MIXTURE = [1014, 1007, 42, 1021, 1028, 1021, 49, 1021]


@pytest.fixture
def stream(tmp_path):
    # Token i is i, so that a window says where it comes from; two shards, 3 targets left over.
    tokens = np.arange(CONTEXT * 13 + 4, dtype=np.uint16)
    for name, piece in (("a", tokens[:40]), ("b", tokens[40:])):
        np.save(tmp_path / f"{name}.npy", piece)
    return TokenStream([tmp_path / "a.npy", tmp_path / "b.npy"], vocab_size=200)


@pytest.fixture
def make_stream(tmp_path):
    def make(num_windows, first_token):
        tokens = np.arange(CONTEXT * num_windows + 1, dtype=np.uint32) + first_token
        path = tmp_path / f"{first_token}.npy"
        np.save(path, tokens)
        return TokenStream([path], vocab_size=10**6)

    return make


def windows_of(stream, context=CONTEXT, seed=3):
    return TrainingWindows({"text": (stream, 1.0)}, context, seed)


def test_an_epoch_covers_each_window_once_and_targets_follow_inputs(stream):
    windows = windows_of(stream)
    assert windows.streams[0].num_windows == 13
    inputs, targets = windows.batch(0, 13)
    assert inputs.shape == targets.shape == (13, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.int64
    assert sorted(inputs.flatten().tolist()) == list(range(CONTEXT * 13))
    torch.testing.assert_close(targets, inputs + 1)
    assert windows.describe(182) == (
        "2.00 epochs of text's 91 tokens (3 at the end of the stream fill no window)"
    )


def test_every_epoch_has_its_own_order_of_the_same_windows(stream):
    windows = windows_of(stream)
    epochs = [windows.batch(13 * e, 13)[0][:, 0].tolist() for e in range(3)]
    assert len({tuple(order) for order in epochs}) == 3
    assert all(sorted(order) == sorted(epochs[0]) for order in epochs)


def test_seed_alone_determines_the_order(stream):
    first, again, other = (windows_of(stream, seed=seed).batch(0, 30)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_access_equals_sequential_reading_across_epochs(stream, make_stream):
    mixed = {"a": (stream, 1.0), "b": (make_stream(5, 1000), 3.0)}
    for streams, count in (({"a": (stream, 1.0)}, 40), (mixed, MIXTURE_BLOCK + 40)):
        sequential = TrainingWindows(streams, CONTEXT, seed=5)
        rows = torch.cat([sequential.batch(i, 1)[0] for i in range(count)])
        random_access = TrainingWindows(streams, CONTEXT, seed=5)
        for first, number in ((count - 3, 3), (0, 5), (11, 20), (26, 1), (5, 35)):
            torch.testing.assert_close(
                random_access.batch(first, number)[0], rows[first : first + number]
            )


def test_order_is_the_recorded_one(stream, make_stream):
    # A change here changes every training run and every resumed one.
    starts = windows_of(stream, seed=0).batch(0, 26)[0][:, 0] // CONTEXT
    assert starts.tolist() == RECORDED
    streams = {"a": (stream, 1.0), "b": (make_stream(5, 1000), 3.0)}
    mixed = TrainingWindows(streams, CONTEXT, seed=0)
    assert mixed.batch(1020, 8)[0][:, 0].tolist() == RECORDED_MIXTURE


def test_stream_shorter_than_a_window_is_refused_with_both_numbers(stream):
    with pytest.raises(DataError, match="has 95 tokens, fewer than the 96"):
        windows_of(stream, context=95)
    assert windows_of(stream, context=94).streams[0].num_windows == 1


@pytest.mark.parametrize(("context", "seed"), [(0, 0), (-1, 0), (7, -1)])
def test_bad_arguments_are_refused(stream, context, seed):
    with pytest.raises(ValueError, match="must be at least"):
        windows_of(stream, context, seed)


def test_negative_samples_are_refused(stream):
    windows = windows_of(stream)
    for first, number in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            windows.batch(first, number)


def test_mixture_gives_each_stream_its_share_and_repeats_none_before_its_epoch_ends(make_stream):
    sizes, weights = (700, 4000, 90), (2.0, 5.0, 0.25)
    streams = [make_stream(size, 100_000 * k) for k, size in enumerate(sizes)]
    named = dict(zip("abc", zip(streams, weights, strict=True), strict=True))
    mixed = TrainingWindows(named, CONTEXT, seed=1)
    count = 3 * MIXTURE_BLOCK
    first_tokens = torch.cat([mixed.batch(i, 64)[0][:, 0] for i in range(0, count, 64)]).numpy()
    of_stream = first_tokens // 100_000
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        share = weight / sum(weights)
        in_block = (of_stream[:MIXTURE_BLOCK] == number).sum()
        assert abs(in_block - share * MIXTURE_BLOCK) < 1
        own = (first_tokens[of_stream == number] - 100_000 * number) // CONTEXT
        assert len(own) == 3 * in_block
        times = np.bincount(own, minlength=size)
        assert times.max() - times.min() <= 1
    # Not one stream after another: runs are as long as chance makes them.
    changes = (of_stream[1:] != of_stream[:-1]).mean()
    expected = 1 - sum((w / sum(weights)) ** 2 for w in weights)
    assert math.isclose(changes, expected, rel_tol=0.1)
    with pytest.raises(DataError, match=r"data\.weights: .*weights 1, 5000"):
        TrainingWindows({"a": (streams[0], 1.0), "b": (streams[1], 5000.0)}, CONTEXT, seed=1)


class Noted(TrainingWindows):
    """Notes what was read, and where."""

    def batch(self, first_sample, num_samples, device="cpu"):
        result = super().batch(first_sample, num_samples, device)
        self.read.append((first_sample, threading.current_thread().name))
        self.was_read.release()
        return result


def test_the_next_batch_is_read_while_the_step_runs(stream):
    windows = Noted({"text": (stream, 1.0)}, CONTEXT, 3)
    windows.read, windows.was_read = [], threading.Semaphore(0)
    firsts = [0, 4, 20]
    reader = read_ahead(windows, iter(firsts), 4)
    for number, first in enumerate(firsts):
        inputs, targets = next(reader)
        expected = windows_of(stream).batch(first, 4)
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])
        # Between two requests: this one's batch and the next one's are there, and no more.
        wanted = min(number + 2, 3)
        while len(windows.read) < wanted:
            assert windows.was_read.acquire(timeout=60)
        assert len(windows.read) == wanted
    assert next(reader, None) is None
    assert [first for first, _ in windows.read] == firsts
    assert all(name.startswith("read-ahead") for _, name in windows.read)
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("read-ahead") for name in names)


def test_an_error_of_the_reader_reaches_the_loop(stream):
    reader = read_ahead(windows_of(stream), iter([0, -1]), 4)
    next(reader)
    with pytest.raises(ValueError, match="first_sample"):
        next(reader)
