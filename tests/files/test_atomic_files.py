import json
import os

import numpy as np
import pytest

from files.atomic import write_json, write_text
from files.errors import RunError, WriteFailed
from files.typed_json import read_typed


def test_write_json_round_trips_text_and_leaves_no_other_file(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü\n"], "b": {"c": {}}}
    write_json(tmp_path / "x.json", value)
    assert read_typed(tmp_path / "x.json", dict) == value
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.float64(1.0), r"x\.json\.a\.b\[1\] is a numpy\.float64"),
        (float("nan"), r"x\.json\.a\.b\[1\] is nan"),
        ((1, 2), r"x\.json\.a\.b\[1\] is a builtins\.tuple"),
        ({1: 2}, r"x\.json\.a\.b\[1\] has the key 1"),
    ],
)
def test_write_json_refuses_what_json_would_change_and_keeps_the_old_file(tmp_path, value, where):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError, match=where):
        write_json(path, {"a": {"b": [0, value]}})
    assert json.loads(path.read_text()) == {"old": 1}


def test_write_text_syncs_before_it_renames_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    write_text(tmp_path / "x", "text")
    assert calls == ["fsync", "replace", "fsync"]


def test_write_text_failing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_text(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"No space left on device \(3 B needed, [\d.]+ \w?B free"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_an_error_of_writing_is_not_hidden_by_one_of_tidying_up(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(WriteFailed, match=r"cannot write .*x: Read-only file system"):
        write_text(tmp_path / "x", "text")


def test_text_that_is_no_unicode_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*x: '\\ud800' is no letter") as caught:
        write_text(tmp_path / "x", "a\ud800")
    str(caught.value).encode()
    assert list(tmp_path.iterdir()) == []
