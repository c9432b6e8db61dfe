import time

import pytest
from weights import assert_same_bits, final_tensors

import training
from training.endurance.time_limit import TimeLimit
from training.errors import TrainingInterrupted


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(training, "STARTED_AT", 100.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + Clock.now)
    return Clock


def test_it_stops_while_a_step_and_a_checkpoint_still_fit(clock):
    limit = TimeLimit(2.0, checkpoint_bytes=int(3 * 2e8))  # 3 s
    clock.now = 112.0
    assert limit.reason_to_stop(step_seconds=5.0) is None
    clock.now = 112.1
    assert limit.reason_to_stop(step_seconds=5.0) == "trainer.max_minutes=2"


def test_a_checkpoint_is_expected_to_take_as_long_as_the_last_one(clock):
    limit = TimeLimit(2.0, checkpoint_bytes=0)
    with limit.timing_a_save():
        clock.now = 30.0
    clock.now = 85.0
    assert limit.reason_to_stop(step_seconds=5.0) is None
    clock.now = 85.1
    assert limit.reason_to_stop(step_seconds=5.0) is not None


def test_no_limit_never_stops(clock):
    clock.now = 1e9
    assert TimeLimit(None, 10**12).reason_to_stop(1e9) is None


def test_a_stopped_run_resumes_to_the_same_weights(recipe, run_training):
    whole = run_training(recipe, "whole")
    for step in (1, 2):
        with pytest.raises(TrainingInterrupted) as stop:
            run_training(recipe, "stopped", max_minutes=1e-9)
        assert str(stop.value) == (
            f"trainer.max_minutes=1e-09: checkpoint saved at step {step} of 12; "
            "rerun the same command to resume"
        )
    rerun = run_training(recipe, "stopped", max_minutes=60.0)
    assert_same_bits(final_tensors(whole), final_tensors(rerun))
