"""Two ranks under torchrun of which one dies, hangs or errs, and an agent that is signalled."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import weights
from processes import in_threads

from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from training.errors import AlreadyReported, TrainingError
from training.ranks.heartbeat import Heartbeat
from training.ranks.place import Place
from training.ranks.world import World
from training.recipe.budget import TokenBudget

SCRIPT = Path(__file__).with_name("rank_with_fault.py")
STEPS = 12
# torchrun, which waits for 30 seconds until it kills a rank that does not end; here for three.
TORCHRUN = """
import sys
from torch.distributed.elastic.multiprocessing import api
api.PContext.close.__defaults__ = (None, 3)
from torch.distributed.run import main
main()
"""


@pytest.fixture(scope="module")
def ranks(tiny_data, tmp_path_factory):
    """Start a training on ranks: ranks(name of the run, fault, ...); wait for it by `ended`."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = [
        *tiny_data,
        *("debug=smoke", "tracking=none", f"runs_dir={folder}"),
        "trainer.precision=float32",  # where numbers of ranks are compared
        *(f"trainer.max_tokens={STEPS * 4 * 64}", "trainer.eval_every_steps=100"),
        *("trainer.checkpoint_every_steps=4", "trainer.sample_tokens=0"),
    ]

    def start(name, fault=None, *extra, number=2, shutdown_seconds=30):
        launcher = ["-c", TORCHRUN, "--standalone", f"--nproc_per_node={number}"]
        launcher += [f"--shutdown-timeout={shutdown_seconds}"]
        return subprocess.Popen(
            [
                *(sys.executable, *(launcher if number > 1 else []), str(SCRIPT)),
                *(*arguments, f"run_name={name}", *extra),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK_FAULT": json.dumps(fault or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    start.folder = folder
    return start


def ended(process, within=240):
    try:
        out, err = process.communicate(timeout=within)
    finally:
        process.kill()  # its ranks follow
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines_of_ours(result):
    return [line for line in result.stderr.splitlines() if line.startswith("kvlab:")]


def steps_of(run):
    return CheckpointStore(run / "checkpoints", 1, read_only=True).steps()


def assert_valid(run):
    """Read and verify the newest checkpoint, and no leftover next to it that counts as one."""
    newest = CheckpointStore(run / "checkpoints", 1, read_only=True).load_newest()
    assert newest.step == steps_of(run)[-1]
    return newest


def losses(run):
    return [record["train/loss"] for record in read_metrics(run / "metrics.jsonl")]


def assert_same_bits(run, other):
    one, two = (assert_valid(path) for path in (run, other))
    assert one.step == two.step == STEPS
    weights.assert_same_bits(*map(weights.final_tensors, (run, other)))
    assert losses(run) == losses(other)
    assert len(losses(run)) == STEPS


@pytest.fixture(scope="module")
def reference(ranks):
    result = ended(ranks("whole"))
    assert result.returncode == 0, result.stderr
    return ranks.folder / "whole"


def processes_of(torchrun):
    """Return the process ids of its ranks."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return [int(child) for child in children]


def is_alive(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_rank_after_the_other_fails_and_the_run_ends_like_the_undisturbed_one(ranks, reference):
    name, run = "broken", ranks.folder / "broken"

    # X1: an end that looks like success, and an error.
    left = ended(ranks(name, {"rank": 1, "step": 3, "act": "leave"}), within=60)
    assert left.returncode != 0
    (line,) = lines_of_ours(left)
    assert "rank 1 died or lost its connection in step 3; rerun" in line
    assert line.endswith("from the beginning")
    failed = ended(ranks(name, {"rank": 1, "step": 6, "act": "fail"}), within=60)
    assert failed.returncode != 0
    assert failed.stderr.count("ValueError: broken on purpose") == 1
    assert lines_of_ours(failed) == []
    assert steps_of(run) == [4]

    # X2: it does nothing; it does not even give a sign of life.
    limit = "trainer.rank_timeout_seconds=10"
    for act in ("sleep", "stop"):
        began = time.monotonic()
        hung = ended(ranks(name, {"rank": 1, "step": 6, "act": act}, limit), within=120)
        assert time.monotonic() - began < 60
        assert hung.returncode != 0
        (line,) = lines_of_ours(hung)
        assert "rank 1 has not answered for 10 s (trainer.rank_timeout_seconds) in step 6; " in line
        assert line.endswith("train from the checkpoint of step 4")
        assert_valid(run)

    # X6: the loss of one rank is no number: both stop in that step, after a checkpoint.
    diverged = ended(ranks(name, {"rank": 1, "step": 7, "act": "lose_the_numbers"}), within=60)
    assert diverged.returncode != 0
    (line,) = lines_of_ours(diverged)
    assert re.search(r"step 7 \(training sequences 24 to 27.*the state after step 6 is saved", line)
    assert len(re.findall(r"exitcode *: 1 ", diverged.stderr)) >= 1
    newest = assert_valid(run)
    assert newest.step == 6
    assert all(tensor.isfinite().all() for tensor in newest.tensors["model"].values())

    rerun = ended(ranks(name))
    assert rerun.returncode == 0, rerun.stderr
    assert "not bit for bit" not in rerun.stdout
    assert_same_bits(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_signals_to_the_agent_and_its_death_leave_a_run_that_resumes(ranks, reference, tmp_path):
    name, run = "signalled", ranks.folder / "signalled"
    note = tmp_path / "saving"

    # X4: to torchrun itself, while a checkpoint is saved that takes 2 s.
    saved = 0
    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 8)):
        note.unlink(missing_ok=True)
        process = ranks(name, {"rank": 0, "save_seconds": 0.7, "note": str(note)})
        wait_for(note.exists)
        process.send_signal(number)
        result = ended(process, within=60)
        assert result.returncode != 0
        (line,) = lines_of_ours(result)
        assert f"{number.name}: checkpoint saved at step {step} of 12; rerun" in line
        assert len(note.read_text().splitlines()) == 3  # one save of three files
        assert assert_valid(run).step == step
        saved += 1
    assert saved == 2

    # A save that takes longer than torchrun waits: the one before is still there.
    note.unlink()
    fault = {"rank": 0, "save_seconds": 30, "note": str(note)}
    process = ranks(name, fault, shutdown_seconds=1)
    wait_for(note.exists)
    process.send_signal(signal.SIGTERM)
    assert ended(process, within=25).returncode != 0
    assert assert_valid(run).step == 8

    # X5: torchrun is killed, and its ranks do not outlive it for long.
    note.unlink()
    process = ranks(name, fault)
    wait_for(note.exists)
    numbers = processes_of(process)
    assert len(numbers) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, numbers)), seconds=10)
    process.communicate()
    assert assert_valid(run).step == 8

    rerun = ended(ranks(name))
    assert rerun.returncode == 0, rerun.stderr
    assert_same_bits(run, reference)


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_rank_makes_no_checkpoint_of_its_shards(ranks):  # X6
    fault = {"rank": 1, "step": 6, "act": "fill_the_disk"}
    result = ended(ranks("full", fault, "trainer=fsdp"), within=60)
    assert result.returncode != 0
    (line,) = lines_of_ours(result)
    assert "cannot" in line
    assert "File too large" in line
    assert steps_of(ranks.folder / "full") == [4]
    assert_valid(ranks.folder / "full")
    leftovers = {path.name for path in (ranks.folder / "full" / "checkpoints").iterdir()}
    assert leftovers == {"00000004"}


@pytest.mark.slow
def test_one_rank_begins_and_two_resume(ranks, reference):  # X7
    first = ended(ranks("grown", None, "trainer.max_minutes=1e-9", number=1))
    assert first.returncode == 75, first.stderr
    assert steps_of(ranks.folder / "grown") == [1]
    second = ended(ranks("grown"))
    assert second.returncode == 0, second.stderr
    assert "resuming, but not bit for bit: ranks was 1, is 2" in second.stdout
    one, other = losses(ranks.folder / "grown"), losses(reference)
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1e-5
    summary = json.loads((ranks.folder / "grown" / "summary.json").read_text())
    assert "ranks: 1 -> 2 after step 1" in summary["numerics_changed"]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_number_of_ranks_reads_the_same_sequences_in_the_same_order(size):  # X3, X7
    # Odd sizes: three passes of six sequences, of which 15 are no multiple.
    budget = TokenBudget(16, 6, 3, num_steps=5)
    share = World(Place(0, size), torch.device("cpu")).share_of(budget.sequences_per_pass)
    read = [
        sequence
        for step in range(budget.num_steps)
        for index in range(budget.passes_per_step)
        for rank in range(size)
        for sequence in range(
            budget.first_sequence(step, index) + rank * share,
            budget.first_sequence(step, index) + (rank + 1) * share,
        )
    ]
    assert read == list(range(5 * 3 * 6))


@pytest.mark.parametrize(("sequences", "size"), [(5, 2), (7, 3), (1, 2)])
def test_a_pass_that_the_ranks_cannot_share_equally_is_refused(sequences, size):  # X3
    with pytest.raises(TrainingError, match=rf"micro_batch_size \({sequences}\).*\({size}\)"):
        World(Place(0, size), torch.device("cpu")).share_of(sequences)


class Store(dict):
    """The part of torchrun that shows signs of life."""

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]

    def set(self, key, value):
        self[key] = value


def test_a_silent_rank_is_named_once_and_one_that_gives_signs_is_not():
    store, silent = Store(), []
    watching = Heartbeat(store, 0, [1, 2], 0.3, silent.append)
    others = [Heartbeat(store, rank, [], 0.3, silent.append) for rank in (1, 2)]
    for heart in (watching, *others):
        heart.start()
    time.sleep(1)
    assert silent == []
    others[1].stop()
    wait_for(lambda: silent == [2], seconds=10)
    time.sleep(0.5)
    assert silent == [2]
    others[0].stop()


def test_a_store_that_fails_now_and_then_silences_nobody():
    class Busy(Store):
        calls = 0

        def set(self, key, value):
            self.calls += 1
            if self.calls % 3:
                raise RuntimeError("the store is busy")
            super().set(key, value)

    store = Busy()
    heart = Heartbeat(store, 1, [], 0.1, pytest.fail)
    heart.start()
    wait_for(lambda: store.calls > 10, seconds=10)
    heart.stop()
    assert int(store["alive/1"]) > 6


@pytest.mark.slow
def test_a_rank_that_cannot_report_why_it_gives_up_ends_all_the_same():
    code = """
import os, torch
from training.ranks.world import World
from training.ranks.place import Place
world = World(Place(1, 2), torch.device("cpu"), torch.distributed.HashStore(), print, 10)
def hint():
    raise RuntimeError("the disk does not answer")
world._resume_hint = hint
world._give_up(0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, check=False
    )
    assert result.returncode == 1


def test_a_rank_that_has_not_begun_is_waited_for():
    silent = []
    watching = Heartbeat(Store(), 0, [1], 0.1, silent.append)
    watching.start()
    time.sleep(0.5)
    watching.stop()
    assert silent == []


@pytest.mark.parametrize(
    "end",
    [SystemExit(0), KeyboardInterrupt(), RuntimeError("mat1 and mat2 cannot be multiplied")],
    ids=repr,
)
def test_whatever_ends_a_rank_ends_the_others_and_is_reported_once(end):  # X1
    store, told, ended = dist.HashStore(), [], [None, None]

    def rank(number):
        world = World(Place(number, 2), torch.device("cpu"), store, told.append)
        try:
            with world.reporting_errors():
                if number == 1:
                    raise end
                world.from_main(lambda: time.sleep(0.2))
                world._wait_for("what rank 1 would have said")
        except AlreadyReported as error:
            ended[number] = error.kind

    in_threads(rank, (0, 1))
    assert ended == [type(end).__name__] * 2
    assert told == [end]


@pytest.mark.parametrize("hint", ["from the checkpoint of step 4", None])
def test_a_rank_that_waits_for_a_silent_rank_0_ends_itself_with_its_name(monkeypatch, hint):  # X2
    store, told, ended = dist.HashStore(), [], []
    monkeypatch.setattr("training.ranks.ending.os._exit", ended.append)
    store.set("alive/0", "its last sign")
    world = World(Place(1, 2), torch.device("cpu"), store, told.append, timeout_seconds=0.2)
    world.step = 5
    with world.reporting_errors(hint and (lambda: hint)):
        world.watch_others(store)
        wait_for(lambda: ended, seconds=10)
    assert ended == [1]
    (line,) = map(str, told)
    assert (
        "rank 0 has not answered for 0.2 s (trainer.rank_timeout_seconds) in step 5; rerun" in line
    )
    assert line.endswith(f"train {hint}" if hint else "rerun the same command")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            "gloo/transport/tcp/pair.cc:534] Connection closed by peer",
            "died or lost its connection",
        ),
        (
            "gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 7000ms",
            "has not answered for 7 s",
        ),
    ],
)
def test_of_several_ranks_those_are_lost_that_find_none_lost(error, says):
    store, told, ended = dist.HashStore(), [], []

    def rank(number):
        world = World(Place(number, 4), torch.device("cpu"), store, told.append, 7.0)
        try:
            with world.reporting_errors(lambda: "from the beginning"):
                raise RuntimeError(error)
        except AlreadyReported as told_of:
            ended.append(told_of.kind)

    in_threads(rank, (0, 1, 3))
    assert ended == ["TrainingInterrupted"] * 3
    (line,) = map(str, told)
    assert line.startswith(f"rank 2 {says}")
    assert line.endswith("rerun the same command to train from the beginning")
