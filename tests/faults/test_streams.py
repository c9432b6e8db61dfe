"""stdout and stderr that are closed, full or read by nobody: a job still writes its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path):
    """Run an entry point in a shell with a redirection; returns what subprocess does."""

    def run(script, arguments, redirection=""):
        command = [sys.executable, *script.split(), *map(str, arguments)]
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"$@" {redirection}', "bash", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# Prints more than a pipe holds, and opens a file, which must not get the number of a stream.
PROGRAM = """
from launch.environment import ensure
ensure()
import sys
from launch.terminal import complain, is_read, lost_output, outlive_readers, say
outlive_readers()
with open(sys.argv[1], "w") as file:
    for _ in range(200):
        say("x" * 1000)
        sys.stderr.write("y" * 1000)
    complain("end")
    print(file.fileno(), is_read(), type(lost_output()).__name__, sys.stdin.read(1), file=file)
"""


@pytest.mark.parametrize(
    ("redirection", "found", "shown"),
    [
        ("< /dev/null", "True NoneType", (200_200, 200_011)),
        (">&- 2>&- <&-", "True NoneType", (0, 0)),
        (">&-", "True NoneType", (0, 200_011)),
        ("2>&-", "True NoneType", (200_200, 0)),
        ("> /dev/full", "False OSError", (0, 200_011)),
        ("2> /dev/full", "True NoneType", (200_200, 0)),
        ("| head -c 10", "False NoneType", (10, 200_011)),
        ("2>&1 > /dev/null | head -c 10", "True NoneType", (10, 0)),
    ],
)
def test_no_write_fails_and_no_file_becomes_a_stream(shell, tmp_path, redirection, found, shown):
    done = shell("-c", [PROGRAM, tmp_path / "file"], redirection)
    assert done.returncode == 0, done.stderr
    number, *said = (tmp_path / "file").read_text().split()
    assert int(number) > 2
    assert " ".join(said) == found
    assert (len(done.stdout), len(done.stderr)) == shown


@pytest.mark.slow
def test_help_that_nobody_reads_to_its_end_is_silent_and_to_a_full_disk_is_not(shell):
    short = shell("train_model.py", ["--help"], "| head -1")
    assert (short.returncode, short.stderr, short.stdout.count("\n")) == (0, "", 1)
    full = shell("train_model.py", ["--help"], "> /dev/full")
    assert full.returncode == 1
    assert full.stderr.startswith("kvlab: stdout: No space left on device; ")
    assert full.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("redirection", "status", "complaint"),
    [
        ("| head -1", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("> /dev/full", 1, "kvlab: stdout: No space left on device; not all of the output"),
    ],
)
def test_a_check_that_nobody_reads_ends_well_and_one_on_a_full_disk_does_not(
    shell, redirection, status, complaint
):
    done = shell("check_attention.py", ["--help"], redirection)
    assert done.returncode == status
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == bool(complaint)


@pytest.mark.slow
def test_jobs_finish_without_streams(shell, tiny_data, tmp_path):
    smoke = ["debug=smoke", "tracking=none", "trainer.sample_tokens=4", "run_name=x"]
    runs = f"runs_dir={tmp_path}/runs"
    done = shell("train_model.py", [*tiny_data, *smoke, runs], ">&- 2>&- <&-")
    assert done.returncode == 0
    summary = json.loads((tmp_path / "runs" / "x" / "summary.json").read_text())
    assert summary["finished"]
    evaluating = [runs, "run=x", f"reports_dir={tmp_path}/reports", "tracking=none", "eval=default"]
    assert shell("eval_model.py", evaluating, "| head -1").returncode == 0
    assert (tmp_path / "reports" / "comparison" / "results.json").exists()
    full = shell("generate_text.py", [runs, "run=x", "max_new_tokens=9"], "> /dev/full")
    assert full.returncode == 1
    assert full.stderr.startswith("kvlab: stdout: No space left on device; ")
    assert full.stderr.count("\n") == 1
