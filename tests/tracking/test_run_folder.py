import errno
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from files.errors import RunError, WriteFailed
from tracking.checkpoints import CheckpointStore
from tracking.configuration import read_configuration
from tracking.metrics import MetricsLog, read_metrics
from tracking.run_folder import RunFolder, list_finished_runs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "../x",
        "/abs",
        "a/../../b",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\n",
        "a b",
        "ünicode",
        "x" * 151,
        "x" * 300,
    ],
)
def test_run_name_that_could_leave_the_folder_is_refused_and_nothing_created(tmp_path, name):
    with pytest.raises(RunError, match=r"run_name .* is not allowed; use 1 to 150") as caught:
        RunFolder(tmp_path / "runs", name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mha-124M", "a.b_c=1,d+e", "x" * 150, "0"])
def test_run_name_of_the_allowed_letters_is_taken(tmp_path, name):
    run = RunFolder(tmp_path, name)
    assert run.path == tmp_path / name
    assert not run.path.exists()


def test_run_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="symbolic link"):
        RunFolder(tmp_path / "runs", "x")


def test_run_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        RunFolder(tmp_path / "runs", "x").create()


def test_summary_and_config_round_trip(tmp_path):
    run = RunFolder(tmp_path / "runs", "x")
    assert run.read_summary() is None
    run.create()
    run.write_config("a: 1\n")
    run.write_summary({"finished": False, "mfu": None})
    assert run.config_path.read_text() == "a: 1\n"
    assert run.read_summary() == {"finished": False, "mfu": None}
    with pytest.raises(TypeError, match=r"summary\.json\.mfu is nan"):
        run.write_summary({"mfu": float("nan")})


def test_a_sample_is_a_file_of_the_run_and_not_endless(tmp_path):
    run = RunFolder(tmp_path, "run")
    assert run.read_sample() is None
    run.create()
    run.samples_path.write_bytes(b"x\xff" * 100_000)
    assert run.read_sample().startswith("x\N{REPLACEMENT CHARACTER}x")
    assert len(run.read_sample()) <= 20_000
    run.samples_path.unlink()
    (tmp_path / "secret").write_text("secret")
    run.samples_path.symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="is a symbolic link"):
        run.read_sample()
    run.samples_path.unlink()
    run.samples_path.mkdir()
    with pytest.raises(RunError, match="cannot read"):
        run.read_sample()


def test_list_finished_runs_sorts_and_says_what_it_left_out(tmp_path):
    for name, finished in (("b", True), ("a", True), ("going", False), (".hidden", True)):
        (tmp_path / name).mkdir()
        summary = {"finished": finished, "validation_nll": 1.5, "validation_perplexity": 4.5}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "summary.json").write_text('{"finished": tr')
    (tmp_path / "empty").mkdir()
    (tmp_path / "truthy").mkdir()
    (tmp_path / "truthy" / "summary.json").write_text('{"finished": "no"}')
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").write_text("a: 1")
    (tmp_path / "file.txt").write_text("")
    runs, problems = list_finished_runs(tmp_path)
    assert [run.name for run in runs] == ["a", "b"]
    assert [problem.split()[0] for problem in problems if "not finished" in problem] == [
        *("going", "started"),
    ]
    torn, truthy = (problem for problem in problems if "not finished" not in problem)
    assert "torn" in torn
    assert "truthy/summary.json is damaged: expected bool, got str at $.finished" in truthy


def test_list_finished_runs_refuses_a_missing_folder(tmp_path):
    with pytest.raises(RunError, match="is not a folder"):
        list_finished_runs(tmp_path / "nowhere")


HOLDER = """
import sys, time
from tracking.run_folder import RunFolder
with RunFolder(sys.argv[1], "x").lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_refuses_a_second_process_at_once_and_is_freed_by_kill_9(tmp_path):
    run = RunFolder(tmp_path, "x")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        start = time.monotonic()
        with (
            pytest.raises(
                RunError, match=rf"in use by process {holder.pid} on {os.uname().nodename}"
            ),
            run.lock(),
        ):
            pass
        assert time.monotonic() - start < 1
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with run.lock():
        owner = json.loads((run.path / ".lock-owner.json").read_text())
        assert owner["pid"] == os.getpid()
    assert not (run.path / ".lock-owner.json").exists()


def test_lock_refuses_the_same_process_and_is_free_after_an_error(tmp_path):
    run = RunFolder(tmp_path, "x")
    with run.lock(), pytest.raises(RunError, match=f"process {os.getpid()}"), run.lock():
        pass
    with pytest.raises(ZeroDivisionError), run.lock():
        _ = 1 / 0
    with run.lock():
        pass


def test_lock_without_a_readable_owner_still_refuses(tmp_path):
    run = RunFolder(tmp_path, "x")
    with run.lock():
        (run.path / ".lock-owner.json").write_text("")
        with pytest.raises(RunError, match="in use by another process"), run.lock():
            pass


def link(path, elsewhere):
    path.symlink_to(elsewhere)


def endless(path, elsewhere):
    path.symlink_to("/dev/zero")


def pipe(path, elsewhere):
    os.mkfifo(path)


def folder(path, elsewhere):
    path.mkdir()


def device(path, elsewhere):
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except OSError:
        pytest.skip("devices can be made by root only")


READERS = {
    "config.yaml": lambda run: read_configuration(run.config_path),
    "summary.json": lambda run: run.read_summary(),
    "samples.txt": lambda run: run.read_sample(),
    "metrics.jsonl": lambda run: read_metrics(run.metrics_path),
    "metrics.jsonl, resumed": lambda run: MetricsLog(run.metrics_path).drop_after(3),
    "metrics.jsonl, appended": lambda run: MetricsLog(run.metrics_path).append({"step": 1}),
    ".lock": lambda run: run.lock().__enter__(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", [link, endless, pipe, folder, device])
def test_what_is_no_file_of_the_run_is_refused_by_name_and_not_followed(tmp_path, name, make):
    run = RunFolder(tmp_path / "runs", "x")
    run.checkpoints_path.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"step": 1}\n')
    path = run.path / name.partition(",")[0]
    make(path, elsewhere)
    start = time.monotonic()
    with pytest.raises(RunError, match=path.name) as caught:
        READERS[name](run)
    assert time.monotonic() - start < 2
    assert "\n" not in str(caught.value)
    assert elsewhere.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("where", ["nowhere", "elsewhere"])
def test_checkpoints_behind_a_link_are_neither_read_nor_removed(tmp_path, where):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ".tmp-1").mkdir(parents=True)
    (elsewhere / ".old-00000007").mkdir()
    run = RunFolder(tmp_path / "runs", "x")
    run.create()
    run.checkpoints_path.symlink_to(tmp_path / where)
    store = CheckpointStore(run.checkpoints_path, 1)
    for use in (store.load_newest, store.steps, lambda: store.save(1, {}, {})):
        with pytest.raises(RunError, match="checkpoints is a symbolic link"):
            use()
    assert sorted(entry.name for entry in elsewhere.iterdir()) == [".old-00000007", ".tmp-1"]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("make", [link, pipe, folder])
def test_what_stands_in_the_place_of_a_temporary_file_is_not_written_to(tmp_path, make):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    run = RunFolder(tmp_path / "runs", "x")
    run.create()
    make(run.path / f".config.yaml.tmp-{os.getpid()}", elsewhere)
    with pytest.raises(RunError, match=r"cannot write .*config\.yaml"):
        run.write_config("a: 1\n")
    assert elsewhere.read_text() == "mine"
    assert not run.config_path.exists()


def test_a_file_larger_than_any_of_its_kind_is_refused_unread(tmp_path):
    run = RunFolder(tmp_path, "x")
    run.create()
    for name in ("config.yaml", "summary.json", "samples.txt", "metrics.jsonl"):
        with (run.path / name).open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(RunError, match=rf"{name}.*more than the \d+ that are allowed"):
            READERS[name](run)
    with pytest.raises(RunError, match=r"metrics\.jsonl holds 1099511627776 bytes"):
        MetricsLog(run.metrics_path).append({"step": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("finished", "no"),
        ("finished", 1),
        ("finished", None),
        ("validation_nll", "1.5"),
        ("validation_perplexity", True),
        ("tokens_per_second", [1.5]),
        ("overfit_batches", {}),
        ("attention", 3),
        ("versions", "2.0"),
    ],
)
def test_a_summary_of_other_types_is_refused_by_the_key(tmp_path, key, value):
    run = RunFolder(tmp_path, "x")
    run.create()
    summary = {"finished": True, "validation_nll": 1.5, "validation_perplexity": 4.5}
    run.write_summary(summary)
    assert run.read_summary() == summary
    run.write_summary(summary | {key: value})
    with pytest.raises(
        RunError, match=rf"summary\.json is damaged: expected .* at \$\.{key}; remove"
    ):
        run.read_summary()


@pytest.mark.parametrize("key", ["validation_nll", "validation_perplexity"])
def test_a_finished_run_has_its_result(tmp_path, key):
    run = RunFolder(tmp_path, "x")
    run.create()
    summary = {"finished": True, "validation_nll": 1.5, "validation_perplexity": 4.5}
    for other in (summary | {key: None}, {name: summary[name] for name in summary if name != key}):
        run.write_summary(other)
        with pytest.raises(RunError, match=f"is finished, but not its {key}"):
            run.read_summary()
    run.write_summary({"finished": False, key: None})
    assert run.read_summary()["finished"] is False


def test_a_run_folder_that_vanished_is_not_made_again(tmp_path):
    run = RunFolder(tmp_path / "runs", "x")
    store = CheckpointStore(run.checkpoints_path, 1)
    log = MetricsLog(run.metrics_path)
    with run.lock():
        log.append({"step": 1})
        store.save(1, {}, {})
        shutil.rmtree(run.path)
        for write in (
            lambda: run.write_config("a: 1\n"),
            lambda: run.write_summary({"finished": False}),
            lambda: store.save(2, {}, {}),
            lambda: MetricsLog(run.metrics_path).append({"step": 2}),
        ):
            with pytest.raises(WriteFailed, match=r"the folder .*/runs/x(/checkpoints)? is gone"):
                write()
        # The open file is still there for the kernel, and for nobody else.
        for write in (lambda: log.append({"step": 2}), log.sync):
            with pytest.raises(WriteFailed, match=r"metrics\.jsonl was deleted while"):
                write()
    assert not run.path.exists()


def test_what_a_killed_process_left_is_removed_by_the_next_holder_only(tmp_path):
    run = RunFolder(tmp_path, "x")
    run.create()
    litter = [".config.yaml.tmp-7", ".summary.json.tmp-123", "..lock-owner.json.tmp-9"]
    kept = ["config.yaml", ".hidden", ".config.yaml.tmp-x", "notes.tmp-7"]
    for name in (*litter, *kept):
        (run.path / name).write_text("")
    run.read_summary()
    assert all((run.path / name).exists() for name in litter)
    with run.lock():
        (run.path / litter[0]).write_text("")
        with pytest.raises(RunError, match="in use"), run.lock():
            pass
        assert (run.path / litter[0]).exists()
        assert not any((run.path / name).exists() for name in litter[1:])
    assert all((run.path / name).exists() for name in kept)


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_an_error_of_the_run_is_not_hidden_by_one_of_letting_go(tmp_path, monkeypatch, call):
    run = RunFolder(tmp_path, "x")

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    def fail_while_it_is_held():
        with run.lock():
            monkeypatch.setattr(os, call, fail)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail_while_it_is_held()
    monkeypatch.undo()
    with run.lock():
        pass


def test_the_owner_of_a_lock_cannot_command_the_terminal(tmp_path):
    run = RunFolder(tmp_path, "x")
    with run.lock():
        (run.path / ".lock-owner.json").write_text(
            json.dumps({"pid": 7, "host": "\x1b[2J" + "h" * 10_000, "since": "\u202e"})
        )
        with pytest.raises(RunError, match="is in use by process") as caught, run.lock():
            pass
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 1000


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join(['*' + before] * 9)}]\n"
    for before, key in itertools.pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2 holds an alias"),
        ("a: &a\n  b: *a\n", "holds an alias"),
        ("[" * 60_000, "nested more than 20 deep"),
        ("{a: " * 15_000, "nested more than 20 deep"),
        ("- " * 30_000, "nested more than 20 deep"),
        ("a: !!python/object/apply:os.system ['touch MARK']\n", "ConstructorError"),
        ("a: !!python/object/apply:pathlib.Path.touch [MARK]\n", "ConstructorError"),
        ("a: !!python/name:os.system\n", "ConstructorError"),
        ("[1, 2]\n", "ValueError"),
        ("a: " + "9" * 10_000 + "\n", "ValueError"),
        ("a: \x00", "ReaderError"),
    ],
)
def test_a_configuration_that_this_program_does_not_write_is_refused_quickly(
    tmp_path, monkeypatch, text, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(RunError, match=message) as caught:
        read_configuration(tmp_path / "config.yaml")
    assert time.monotonic() - start < 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "MARK").exists()


def test_a_configuration_that_is_text_of_another_encoding_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read \(UnicodeDecodeError\)"):
        read_configuration(tmp_path / "config.yaml")
