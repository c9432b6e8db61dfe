import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracking.errors import RunError
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
    assert "truthy/summary.json is damaged: finished is 'no'" in truthy


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
