import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from files.errors import RunError, WriteFailed
from tracking.metrics import MetricsLog, read_metrics

ROOT = Path(__file__).parents[2]


def test_records_are_readable_as_soon_as_appended(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "train/loss": 2.5, "note": "ü\n"})
    log.append({"step": 2, "train/loss": 2.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5, "note": "ü\n"},
        {"step": 2, "train/loss": 2.25},
    ]
    log.sync()
    log.close()


def test_non_finite_values_are_null_at_any_depth_and_lines_stay_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(
        {"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": np.float64("-inf")}}
    )
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"a": None, "b": [None, 1.0], "c": {"d": None}}


def test_a_value_that_is_not_json_is_refused_and_leaves_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    with pytest.raises(TypeError):
        log.append({"step": object()})
    assert path.read_text() == '{"step": 1}\n'


def test_drop_after_removes_later_steps_so_that_none_is_doubled(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"event": "start"})
    for step in range(1, 6):
        log.append({"step": step})
    log.drop_after(3)
    for step in range(4, 6):
        log.append({"step": step})
    log.close()
    assert [record.get("step") for record in read_metrics(path)] == [None, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step"', "\0\0\0", "3"])
def test_torn_last_line_is_ignored_dropped_and_never_continued(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n'
    path.write_text(whole + torn)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    log = MetricsLog(path)
    log.append({"step": 3})
    assert path.read_text() == whole + '{"step": 3}\n'
    log.close()
    path.write_text(whole + torn)
    MetricsLog(path).drop_after(2)
    assert path.read_text() == whole


def test_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    MetricsLog(path).append({"step": 3})
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]


def test_drop_after_leaves_a_file_alone_that_needs_no_change(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.drop_after(3)
    assert not path.exists()
    log.append({"step": 1})
    inode = path.stat().st_ino
    log.drop_after(1)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("damage", ["{bad", "[1]", ""])
def test_damage_in_the_middle_names_file_and_line(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged in line 2") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_read_metrics_of_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_records_survive_kill_9(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from tracking.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "for step in range(500): log.append({'step': step})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_metrics(path)] == list(range(500))


def test_full_disk_is_named_and_leaves_whole_lines(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from files.errors import RunError\n"
        "from tracking.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "try:\n"
        "    for step in range(500): log.append({'step': step})\n"
        "except RunError as error: print(error)\n"
    )
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1001, 1001)),
    )
    assert "cannot write" in done.stdout
    assert str(path) in done.stdout
    assert "B free" in done.stdout
    assert path.read_text().endswith("}\n")
    steps = [record["step"] for record in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50


def test_sync_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.sync()  # nothing is open yet
    log.append({"step": 1})
    monkeypatch.setattr(os, "fsync", synced.append)
    log.sync()
    assert len(synced) == 1


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 30, "9" * 5000]
)
def test_numbers_that_nothing_writes_are_refused_by_the_line(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{{"step": 2, "loss": {value}}}\n{{"step": 3}}\n')
    before = path.read_bytes()
    for read in (read_metrics, lambda path: MetricsLog(path).drop_after(2)):
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged in line 2") as caught:
            read(path)
        assert len(str(caught.value)) < 500
    assert path.read_bytes() == before


def test_an_error_is_reported_where_the_line_cannot_be_taken_back(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})

    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(WriteFailed, match=r"cannot write .*metrics\.jsonl: Read-only file system"):
        log.append({"step": 2})


def test_an_error_of_opening_is_one_line_and_leaves_nothing_open(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr("tracking.metrics.fsync_folder", fail)
    with pytest.raises(WriteFailed, match="Read-only file system"):
        log.append({"step": 1})
    monkeypatch.undo()
    log.append({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
