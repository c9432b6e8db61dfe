"""A disk that is full, read-only or gone, at every write of a run."""

import contextlib
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import wait_for_step

from files.errors import RunError, WriteFailed
from tracking.checkpoints import CheckpointStore
from tracking.metrics import MetricsLog, read_metrics
from tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SIZE = 2 << 20


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Leave less than a page."""
    with contextlib.suppress(OSError), (folder / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def tensors(step, size=10):
    return {"model": {"w": torch.full((size,), float(step))}}


SHORT = {"finished": False, "run_name": "x"}
WRITES = {
    "config.yaml": lambda run, store, log: run.write_config("a: 1\n" * 2000),
    "summary.json": lambda run, store, log: run.write_summary(
        SHORT | {"versions": {"a": "b" * 9000}}
    ),
    "metrics.jsonl": lambda run, store, log: log.append({"note": "x" * 9000}),
    "checkpoints/00000003": lambda run, store, log: store.save(3, tensors(3), {}),
    ".lock-owner.json": lambda run, store, log: run.lock().__enter__(),
}


def started(folder):
    """Return a run with something of everything, its store and its log."""
    run = RunFolder(folder, "x")
    run.create()
    run.write_config("a: 1\n")
    run.write_summary(SHORT)
    store = CheckpointStore(run.checkpoints_path, keep_last=2)
    for step in (1, 2):
        store.save(step, tensors(step), {}, best=1)
    log = MetricsLog(run.metrics_path)
    log.append({"step": 1})
    log.sync()
    return run, store, log


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("ballast", ".lock")
    }


def require_nothing_lost(run, before):
    assert content_of(run.path) == before
    newest = CheckpointStore(run.checkpoints_path, 1, read_only=True).load_newest()
    assert newest.step == 2
    assert torch.equal(newest.tensors["model"]["w"], tensors(2)["model"]["w"])
    assert run.read_summary() == SHORT


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_one_line_with_path_and_sizes_and_nothing_is_lost(small_disk, name):
    run, store, log = started(small_disk)
    before = content_of(run.path)
    fill(small_disk)
    with pytest.raises(WriteFailed, match=r"[\d.]+ \w?B needed, [\d.]+ \w?B free") as caught:
        WRITES[name](run, store, log)
    line = str(caught.value)
    # A checkpoint that cannot fit is refused before its name is needed.
    assert str(run.path / name) in line or name == "checkpoints/00000003"
    assert str(run.path) in line
    assert "No space left on device" in line or "not enough disk space" in line
    assert "\n" not in line
    require_nothing_lost(run, before)
    (small_disk / "ballast").unlink()
    WRITES[name](run, store, log)
    log.append({"step": 2})
    assert read_metrics(run.metrics_path)[-1] == {"step": 2}


def test_a_disk_that_fills_up_within_a_save_keeps_the_one_before(small_disk, monkeypatch):
    run, store, _ = started(small_disk)
    before = content_of(run.path)
    # As if another process wrote after the free space was looked at.
    monkeypatch.setattr("tracking.checkpoints.require_free_bytes", lambda folder, needed: None)
    with pytest.raises(WriteFailed, match=r"No space left .*[\d.]+ \w?B needed, [\d.]+ \w?B free"):
        store.save(3, tensors(3, 3_000_000), {}, best=3)
    require_nothing_lost(run, before)
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_became_read_only_is_one_line_and_nothing_is_lost(small_disk, name):
    run, store, log = started(small_disk)
    log.close()
    before = content_of(run.path)
    if mount("-o", "remount,ro", str(small_disk)).returncode:
        pytest.skip("mounting again is not allowed here")
    with pytest.raises(RunError, match="Read-only file system") as caught:
        WRITES[name](run, store, log)
    assert str(run.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    require_nothing_lost(run, before)
    assert store.load_newest().step == 2  # also by a store that would tidy up


SMALL = (
    *("debug=smoke", "tracking=none", "trainer.keep_last=2", "trainer.max_tokens=16384"),
    *("trainer.checkpoint_every_steps=5", "trainer.log_every_steps=1", "run_name=run"),
)
"""Enough steps to be in the middle of when one is seen in the log."""


@pytest.fixture(scope="module")
def train(tiny_data):
    """Run train_model.py as a user does."""

    def start(runs, *extra, limit=None):
        bound = {"preexec_fn": lambda: limit_files(0, limit)} if limit else {}
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "train_model.py"),
                *tiny_data,
                *SMALL,
                f"runs_dir={runs}",
                *extra,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            **bound,
        )

    def run(runs, *extra, limit=None):
        process = start(runs, *extra, limit=limit)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    run.start = start
    return run


def limit_files(process, size):
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    done = train(runs)
    assert done.returncode == 0, done.stderr
    return runs / "run"


def same_bits(one, other):
    found = [
        CheckpointStore(run / "checkpoints", 1, read_only=True).load_newest()
        for run in (one, other)
    ]
    assert found[0].step == found[1].step
    for group, wanted in found[0].tensors.items():
        assert found[1].tensors[group].keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(tensor, found[1].tensors[group][key]), key


def require_one_line(done):
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("kvlab: ")
    assert re.search(
        r"cannot write .*/checkpoints/.*File too large .*B needed, [\d.]+ \w?B free", line
    )


def steps_of(run):
    store = CheckpointStore(run / "checkpoints", 1, read_only=True)
    assert store.load_newest().step == store.steps()[-1]
    assert all(path.name[0] != "." for path in (run / "checkpoints").iterdir())
    return store.steps()


@pytest.mark.slow
def test_a_full_disk_ends_a_training_with_status_1_and_the_same_command_resumes(
    train, undisturbed, tmp_path
):
    run = tmp_path / "run"
    last = steps_of(undisturbed)[-1]
    # In the middle, at a save between others.
    process = train.start(tmp_path)
    wait_for_step(process, run / "metrics.jsonl", 7)
    limit_files(process.pid, 100_000)
    out, err = process.communicate(timeout=120)
    require_one_line(subprocess.CompletedProcess((), process.returncode, out, err))
    saved = steps_of(run)
    assert 5 <= saved[-1] < last
    assert not (run / "summary.json").exists()
    # At the last save.
    again = train(tmp_path, "trainer.checkpoint_every_steps=1000", limit=100_000)
    require_one_line(again)
    assert steps_of(run) == saved
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")][-1] == last
    assert not (run / "summary.json").exists()
    # With room again.
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"after step {saved[-1]}\n" in done.stdout
    same_bits(run, undisturbed)
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, last + 1))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_steps_only(train, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    older, newest = steps_of(run)[-2:]
    path = run / "checkpoints" / f"{newest:08d}" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "is damaged" in line]
    assert str(path) in line
    assert line.endswith(f"{older:08d} instead")
    assert f"after step {older}\n" in done.stdout
    same_bits(run, undisturbed)
