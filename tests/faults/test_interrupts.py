"""Signals to a training at every moment of its life, and a terminal that is gone."""

import json
import re

import forks
import pytest
from weights import assert_same_bits, final_tensors

from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from tracking.run_folder import RunFolder

STEPS = 12
SETTINGS = [
    *("debug=smoke", "tracking=none", "model.attention.attention_dropout=0.1"),
    "trainer.precision=float32",  # where instruction sets are compared
    *(f"trainer.max_tokens={STEPS * 4 * 64}", "trainer.eval_every_steps=3"),
    *("trainer.checkpoint_every_steps=5", "trainer.eval_tokens=1500", "eval.batch_size=4"),
    *("trainer.sample_tokens=4", "trainer.num_threads=1"),
]


@pytest.fixture(scope="module")
def train_in_forks(tiny_data, tmp_path_factory):
    """Train as several cases say, one after the other; returns what became of each."""
    return forks.runner(tmp_path_factory.mktemp("interrupts"), [*tiny_data, *SETTINGS])


def records(run):
    """All that is recorded of a run's steps, but for what a clock measured."""
    return [
        {key: value for key, value in r.items() if not key.startswith(("perf/", "progress/sec"))}
        for r in read_metrics(run / "metrics.jsonl")
    ]


def assert_equal_to(run, reference):
    one, other = (RunFolder(folder.parent, folder.name) for folder in (run, reference))
    assert CheckpointStore(one.checkpoints_path, 1, read_only=True).steps()[-1] == STEPS
    assert_same_bits(final_tensors(one), final_tensors(other))
    assert records(run) == records(reference)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    keys = ("validation_nll", "train_loss", "tokens_trained", "finished")
    mine, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, reference))
    assert [mine[key] for key in keys] == [theirs[key] for key in keys]


@pytest.fixture(scope="module")
def reference(train_in_forks):
    (result,) = train_in_forks([{"run": "whole"}])
    assert result["status"] == 0, result["err"]
    return train_in_forks.folder / "whole"


# In this order, of one run: where it is, what comes, how it ends, what is said of it, the newest
# checkpoint. T3
ONE_AFTER_THE_OTHER = [
    ("step 2", ["SIGHUP"], 75, "SIGHUP: checkpoint saved at step 2 of 12; rerun", 2),
    ("validation", ["SIGUSR1"], 75, "SIGUSR1: checkpoint saved at step 3 of 12", 3),
    # The validation that is missing is broken off again.
    ("validation", ["SIGTERM"], 75, "SIGTERM: checkpoint saved at step 3 of 12", 3),
    ("step 4", ["SIGINT"], 75, "SIGINT: checkpoint saved at step 4 of 12", 4),
    ("save", ["SIGTERM", "SIGTERM", "SIGHUP"], 75, "SIGTERM: checkpoint saved at step 5 of 12", 5),
    ("step 6", ["SIGINT", "SIGINT"], 130, "interrupted again", 5),
    ("save", ["SIGTERM", "SIGINT"], 130, "interrupted again", 5),
    ("step 7", ["SIGTERM", "SIGTERM", "SIGUSR2"], 75, "SIGTERM: checkpoint saved at step 7", 7),
    ("step 12", ["SIGUSR2"], 75, "SIGUSR2: all 12 steps are saved; rerun .* to finish", 12),
    ("end", ["SIGTERM"], 75, "SIGTERM: all 12 steps are saved; rerun .* to finish", 12),
    ("end", ["SIGINT", "SIGINT"], 130, "interrupted again", 12),
]


@pytest.mark.slow
def test_signals_at_every_moment_leave_a_run_that_ends_like_the_undisturbed_one(
    train_in_forks, reference
):
    run = train_in_forks.folder / "stopped"
    cases = [
        {"run": "stopped", "at": at, "signals": signals} for at, signals, *_ in ONE_AFTER_THE_OTHER
    ]
    results = train_in_forks([*cases, {"run": "stopped"}])
    for result, expected in zip(results, ONE_AFTER_THE_OTHER, strict=False):
        at, signals, status, says, _ = expected
        where = (at, signals, result)
        assert result["status"] == status, where
        assert result["seconds"] < 10, where
        assert re.search(says, result["err"]), where
        assert "Traceback" not in result["err"], where
        assert result["batches_after"] == 0, where
    resumed = [re.search(r"after step (\d+)\n", result["out"]) for result in results[1:]]
    steps = [step for *_, step in ONE_AFTER_THE_OTHER]
    assert [int(match.group(1)) for match in resumed] == steps
    assert results[-1]["status"] == 0, results[-1]["err"]
    assert_equal_to(run, reference)
    summary = json.loads((run / "summary.json").read_text())
    # Those that saved something new.
    assert summary["resumes"] == len(set(steps))
    assert summary["numerics_changed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("output", ["closed pipe", "closed terminal"])
def test_a_run_continues_when_nobody_reads_what_it_says(train_in_forks, reference, output):
    name = output.replace(" ", "-")
    (result,) = train_in_forks([{"run": name, "output": output}])
    assert result["status"] == 0
    assert_equal_to(train_in_forks.folder / name, reference)


@pytest.mark.slow
def test_another_instruction_set_resumes_and_says_so(train_in_forks, reference):  # T11
    (stopped,) = train_in_forks([{"run": "moved", "at": "step 6", "signals": ["SIGTERM"]}])
    assert stopped["status"] == 75
    (moved,) = train_in_forks([{"run": "moved"}], ATEN_CPU_CAPABILITY="default")
    assert moved["status"] == 0, moved["err"]
    if "not bit for bit" not in moved["out"]:
        pytest.skip("this processor has no instruction set above the default")
    assert re.search("not bit for bit: cpu_capability was .*, is DEFAULT", moved["out"])
    one, other = (records(train_in_forks.folder / name) for name in ("moved", reference.name))
    gaps = [abs(a["train/loss"] - b["train/loss"]) for a, b in zip(one, other, strict=True)]
    assert max(gaps) <= 1e-5
    summary = json.loads((train_in_forks.folder / "moved" / "summary.json").read_text())
    assert [change.split(":")[0] for change in summary["numerics_changed"]] == ["cpu_capability"]
