import itertools
import re

import pytest

from tracking.metrics import read_metrics
from training.machine.pace import RECENT_STEPS, Pace


def pace_after(*seconds, first_step=0, num_steps=1000):
    pace = Pace(first_step, num_steps, now=50.0)
    for end in itertools.accumulate(seconds, initial=50.0):
        if end > 50.0:
            pace.step_done(end, 0.5)
    return pace


def test_time_left_is_remaining_steps_times_the_mean_recent_step():
    assert pace_after(9.0).seconds_left == pytest.approx(999 * 9.0)
    # The first step is slower than the others will be.
    assert pace_after(9.0, 2.0).seconds_left == pytest.approx(998 * 2.0)
    assert pace_after(9.0, 2.0, 3.0, 4.0).seconds_left == pytest.approx(996 * 3.0)
    assert pace_after(9.0, 2.0, first_step=990).seconds_left == pytest.approx(8 * 2.0)
    assert pace_after(9.0, 2.0, num_steps=2).seconds_left == 0.0


def test_steps_long_ago_are_forgotten():
    pace = pace_after(1.0, 70.0, *[2.0] * RECENT_STEPS, num_steps=RECENT_STEPS + 12)
    assert pace.seconds_left == pytest.approx(10 * 2.0)
    assert pace.longest_step_seconds == pytest.approx(2.0)
    assert pace_after(9.0, 2.0, 5.0, 3.0).longest_step_seconds == pytest.approx(5.0)


def test_the_speed_is_that_of_the_recent_steps_alone_without_the_first():
    pace = Pace(0, 1000, now=0.0)
    pace.step_done(9.0, 4.0)
    assert pace.computing_seconds == 4.0
    pace.step_done(19.0, 1.0)
    pace.step_done(20.0, 0.5)
    assert pace.computing_seconds == 0.75
    for step in range(RECENT_STEPS):
        pace.step_done(30.0 + step, 0.25)
    assert pace.computing_seconds == 0.25


def test_speed_and_time_left_are_said_and_recorded(recipe, run_training):
    lines = []
    folder = run_training(recipe, "run", lines.append)
    records = read_metrics(folder.metrics_path)
    mfu_per_speed = {r["perf/mfu"] / r["perf/tokens_per_second"] for r in records}
    assert max(mfu_per_speed) == pytest.approx(min(mfu_per_speed))
    summary = folder.read_summary()
    assert summary["mfu"] / summary["tokens_per_second"] == pytest.approx(max(mfu_per_speed))
    left = [record["progress/seconds_left"] for record in records]
    assert left[-1] == 0.0
    assert all(seconds > 0 for seconds in left[:-1])
    (line,) = (line for line in lines if line.startswith("step 5:"))
    speed = f"{records[4]['perf/tokens_per_second']:,.0f}"
    assert re.search(
        rf" {speed} tokens/s, MFU \d\.\d\d, gradient norm {records[4]['train/grad_norm']:.2f}, "
        rf"learning rate {records[4]['train/learning_rate']:.1e}, \d+ s left$",
        line,
    )
