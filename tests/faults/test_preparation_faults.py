"""Preparations that are interrupted, wait, or cannot be completed."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from data import pipeline
from data.errors import DataError
from data.pipeline import prepare, prepared_folder
from data.preparing import packing
from tests.data.texts import (
    BYTES,
    file_bytes,
    overrides,
    quiet,
    settings_for,
    write_corpus,
)

ROOT = Path(__file__).parents[2]


def test_a_series_with_a_hole_is_named(tmp_path):
    for name in ("train-00000-of-00003", "train-00002-of-00003", "v_1-of-2", "val-02-of-02"):
        write_corpus(tmp_path / name, name, 8)
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / name / "train.jsonl").rename(tmp_path / "corpus" / f"{name}.jsonl")
    lines = []
    prepare(settings_for(tmp_path), BYTES, lines.append)
    (absent,) = [line for line in lines if "not there" in line]
    assert absent.endswith("train-00001-of-00003.jsonl, val-01-of-02.jsonl")


def test_a_source_changed_while_it_is_read_is_refused(corpus, monkeypatch):
    add = packing.Packer._add

    def changing(self, *rest):
        (corpus / "corpus" / "train.jsonl").write_text('{"text": "another"}\n')
        return add(self, *rest)

    monkeypatch.setattr(packing.Packer, "_add", changing)
    with pytest.raises(DataError, match=r"train\.jsonl was changed while it was read"):
        prepare(settings_for(corpus), BYTES, quiet)
    assert not prepared_folder(settings_for(corpus), BYTES).exists()


def test_a_line_more_or_two_files_exchanged_is_other_data(corpus):
    before = prepare(settings_for(corpus), BYTES, quiet)
    train, validation = (corpus / "corpus" / f"{s}.jsonl" for s in ("train", "validation"))
    with train.open("a") as file:
        file.write('{"text": "one more line"}\n')
    after = prepare(settings_for(corpus), BYTES, quiet)
    train.rename(corpus / "x")
    validation.rename(train)
    (corpus / "x").rename(validation)
    exchanged = prepare(settings_for(corpus), BYTES, quiet)
    assert len({one.folder for one in (before, after, exchanged)}) == 3
    assert len({one.fingerprint for one in (before, after, exchanged)}) == 3


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of a size; what mounts is not allowed everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_is_named_and_more_room_ends_with_the_same_bytes(small_disk, tmp_path):
    write_corpus(tmp_path / "corpus", "words " * 20, 600)
    disk = small_disk("size=160k")
    changes = {"shard_tokens": 8000, "prepared_dir": str(disk)}
    with pytest.raises(DataError, match=rf"cannot write {disk}.*No space left on device"):
        prepare(settings_for(tmp_path, **changes), BYTES, quiet)
    subprocess.run(["mount", "-o", "remount,size=16M", str(disk)], check=True)
    redone = prepare(settings_for(tmp_path, **changes), BYTES, quiet)
    undisturbed = prepare(settings_for(tmp_path, shard_tokens=8000), BYTES, quiet)
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


def test_a_read_only_disk_is_named(small_disk, corpus):
    disk = small_disk("ro")
    settings = settings_for(corpus, prepared_dir=str(disk / "here"))
    with pytest.raises(DataError, match=r"data\.prepared_dir: cannot create .*Read-only"):
        prepare(settings, BYTES, quiet)
    settings = settings_for(corpus, prepared_dir=str(disk))
    with pytest.raises(DataError, match=rf"cannot write {disk}.*Read-only"):
        prepare(settings, BYTES, quiet)


def test_a_folder_that_vanishes_in_between_is_named(corpus, monkeypatch):
    commit = packing.Packer._commit

    def commit_and_vanish(self):
        commit(self)
        shutil.rmtree(self._folder)

    with monkeypatch.context() as patch:
        patch.setattr(packing.Packer, "_commit", commit_and_vanish)
        with pytest.raises(DataError, match=r"cannot write .*partial.*is gone"):
            prepare(settings_for(corpus), BYTES, quiet)
    prepare(settings_for(corpus), BYTES, quiet).verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir")],
)
def test_any_operation_may_fail_and_the_rerun_ends_with_the_same_bytes(
    corpus, genuine, monkeypatch, owner, name
):
    operation = getattr(owner, name)
    settings = settings_for(corpus)
    # The path of the corpus is in the manifest, so not the other test's.
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(corpus / "undisturbed")), BYTES, quiet
    )
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    failed = 0
    while True:
        left = [failed + 1]

        def fail_once(*args, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.EIO, "Input/output error")
            return operation(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail_once)
            try:
                prepare(settings, BYTES, quiet)
            except DataError as error:
                refusal = str(error)
            else:
                refusal = ""
        if left[0] > 0:
            break
        failed += 1
        # A lock's own folder may exist, and what is removed in vain is removed later.
        assert "Input/output error" in refusal or name in ("mkdir", "unlink"), failed
        redone = prepare(settings, BYTES, quiet)
        assert file_bytes(redone.folder) == file_bytes(undisturbed.folder), failed
        assert [p.suffix for p in redone.folder.parent.iterdir() if p != redone.folder] in (
            [],
            [".lock"],
        )
        shutil.rmtree(redone.folder)
    assert failed >= {"fsync": 30, "replace": 5, "rename": 1, "unlink": 3, "mkdir": 2}[name]


@pytest.mark.parametrize("where", ["_add", "_commit"])
def test_no_memory_says_what_to_lower(corpus, monkeypatch, where):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(packing.Packer, where, no_memory)
    with pytest.raises(DataError, match=r"no memory left to prepare test; .*data\.num_workers"):
        prepare(settings_for(corpus), BYTES, quiet)


def test_one_that_waits_says_for_whom_and_says_it_again(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "_REPEAT_S", 0.1)
    settings = settings_for(corpus)
    folder = prepared_folder(settings, BYTES)
    holding, ready = threading.Event(), threading.Event()

    def hold_then_prepare(say):
        if say.startswith("preparing"):
            ready.set()
            holding.wait(60)

    first = threading.Thread(target=prepare, args=(settings, BYTES, hold_then_prepare))
    first.start()
    assert ready.wait(60)
    lines, results = [], []
    second = threading.Thread(target=lambda: results.append(prepare(settings, BYTES, lines.append)))
    second.start()
    while len(lines) < 3:
        time.sleep(0.01)
    holding.set()
    first.join()
    second.join()
    assert lines[0] == lines[2]
    assert f"process {os.getpid()} on " in lines[0]
    assert lines[0].endswith(f" prepares {folder}; waiting for it")
    assert results[0].folder == folder
    assert not any(line.startswith("preparing") for line in lines)


def test_a_lock_without_a_holder_is_waited_for_all_the_same(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "_REPEAT_S", 0.05)
    folder = prepared_folder(settings_for(corpus), BYTES)
    folder.parent.mkdir()
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    lines = []
    with lock:
        waiting = threading.Thread(target=prepare, args=(settings_for(corpus), BYTES, lines.append))
        waiting.start()
        while len(lines) < 2:
            time.sleep(0.01)
    waiting.join()
    assert lines[0].startswith("another process prepares")


# Small batches, so that there is something to do for several processes; and time to interrupt.
SLOWLY = """
import runpy, sys, time
from data.preparing import packing
packing._BATCH_CHARACTERS = 2000
commit = packing.Packer._commit
def slowly(self):
    commit(self)
    time.sleep(0.05)
packing.Packer._commit = slowly
sys.argv[0] = "prepare_data.py"
runpy.run_module("prepare_data", run_name="__main__")
"""


def start_preparing(corpus, workers, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *overrides(corpus, shard_tokens=2000, num_workers=workers)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_processes_that_encode_do_not_hear_ctrl_c(corpus, genuine, monkeypatch):
    commit = packing.Packer._commit
    signalled = set()

    def interrupt_children(self):
        commit(self)
        for children in Path("/proc/self/task").glob("*/children"):
            for child in set(map(int, children.read_text().split())) - signalled:
                wait_until_ignored(child)
                os.kill(child, signal.SIGINT)
                signalled.add(child)

    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    monkeypatch.setattr(packing.Packer, "_commit", interrupt_children)
    prepared = prepare(settings_for(corpus, num_workers=2), BYTES, quiet)
    assert len(signalled) >= 2
    assert prepared.fingerprint == genuine.fingerprint


def wait_until_ignored(process):
    """Wait until a process that is starting ignores SIGINT."""
    for _ in range(1000):
        (line,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
        if int(line, 16) >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.02)
    pytest.fail(f"process {process} would be interrupted")


def is_alive(group):
    """Look for a process of a group, and wait a little if there is one."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    time.sleep(0.02)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_done_and_shows_no_traceback(tmp_path, workers):
    write_corpus(tmp_path / "corpus", "some more words", 2000)
    settings = settings_for(tmp_path, shard_tokens=2000, num_workers=workers)
    folder = prepared_folder(settings, BYTES)
    partial = folder.with_name(folder.name + ".partial")
    process = start_preparing(tmp_path, workers, tmp_path)
    deadline = time.monotonic() + 120
    while not (partial / "train-00003.npy").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "kvlab: interrupted"
    assert f"what is done is kept in {partial}" in out
    # Nobody stays of the group.
    assert any(not is_alive(process.pid) for _ in range(500))
    lines = []
    redone = prepare(settings, BYTES, lines.append)
    assert lines[0].startswith("resuming the preparation of")
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other")), BYTES, quiet
    )
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


@pytest.mark.slow
def test_of_two_processes_that_prepare_at_once_one_waits(tmp_path):
    write_corpus(tmp_path / "corpus", "some more words", 600)
    processes = [start_preparing(tmp_path, 1, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    outs = [out for out, _ in said]
    assert sum("preparing test with tokenizer" in out for out in outs) == 1
    settings = settings_for(tmp_path, shard_tokens=2000)
    redone = prepare(settings, BYTES, lambda line: pytest.fail(line))
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other")), BYTES, quiet
    )
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)
