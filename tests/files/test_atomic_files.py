import json
import os

import numpy as np
import pytest

from files.atomic import read_json, write_json, write_text
from files.errors import RunError, WriteFailed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"a": 1', "is not valid JSON"),
        (b"hello", "is not valid JSON"),
        (b'{"a": NaN}', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must hold a JSON object"),
    ],
)
def test_read_json_names_the_file_and_the_cause(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_json_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(RunError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="cannot read"):
        read_json(tmp_path)


def test_write_json_round_trips_text_and_leaves_no_other_file(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü\n"], "b": {"c": {}}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
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


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 21, "9" * 5000])
def test_numbers_that_nothing_writes_are_not_read(tmp_path, number):
    (tmp_path / "x.json").write_text(f'{{"a": [{number}]}}')
    with pytest.raises(RunError, match=r"x\.json is not valid JSON \(the number") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 300
