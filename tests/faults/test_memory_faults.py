"""Memory that is really used up: a limit on the address space, set in the middle of a run."""

import re
from pathlib import Path

import forks
import pytest
from weights import assert_same_bits, final_tensors

from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from tracking.run_folder import RunFolder

STEPS = 8


@pytest.fixture(scope="module")
def train_in_forks(tiny_data, tmp_path_factory):
    """Train as several cases say, one after the other; returns what became of each."""
    settings = [
        *("debug=smoke", "tracking=none", "trainer.num_threads=1"),
        *("trainer.micro_batch_size=64", f"trainer.max_tokens={STEPS * 64 * 64}"),
        *("trainer.tune_allocator=false", "eval.batch_size=32", "trainer.eval_every_steps=5"),
        *("trainer.checkpoint_every_steps=2", "trainer.sample_tokens=0"),
    ]
    # What is freed is returned, so that the limit is one on what is used.
    return forks.runner(
        tmp_path_factory.mktemp("memory"),
        [*tiny_data, *settings],
        MALLOC_MMAP_THRESHOLD_="65536",
    )


ROOM_BYTES = 1 << 20
# In this order, of one run: where memory ends, what is said, what is there then. T9
ONE_AFTER_THE_OTHER = [
    ("step 4", "step 4 while computing gradients .*the state after step 3 is saved; lower tr"),
    ("validation", "step 5 while evaluating .*the state after step 5 is saved; lower eval.batch_s"),
    ("end", "step 8 while evaluating .*there is a checkpoint of step 8; lower eval.batch_size"),
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_used_up_memory_is_one_line_with_sizes_and_advice_and_loses_no_step(train_in_forks):
    starved = [
        {"run": "starved", "at": at, "room_bytes": ROOM_BYTES} for at, _ in ONE_AFTER_THE_OTHER
    ]
    results = train_in_forks([{"run": "whole"}, *starved, {"run": "starved"}])
    assert results[0]["status"] == 0, results[0]["err"]
    for result, (at, says) in zip(results[1:-1], ONE_AFTER_THE_OTHER, strict=True):
        assert result["status"] == 1, (at, result)
        (line,) = result["err"].splitlines()
        assert re.match(f"kvlab: out of memory in {says}", line), line
        assert re.search(r"you tried to allocate \d+ bytes", line), line
    assert results[-1]["status"] == 0, results[-1]["err"]
    whole, run = (train_in_forks.folder / name for name in ("whole", "starved"))
    one, other = (RunFolder(folder.parent, folder.name) for folder in (whole, run))
    assert CheckpointStore(other.checkpoints_path, 1, read_only=True).steps()[-1] == STEPS
    assert_same_bits(final_tensors(one), final_tensors(other))
    keys = ("step", "train/loss", "train/grad_norm", "validation/nll_part")
    recorded = [
        [[r.get(key) for key in keys] for r in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, run)
    ]
    assert recorded[0] == recorded[1]
    assert len(recorded[0]) == STEPS
