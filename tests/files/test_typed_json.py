import json
import os
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest

from files.errors import RunError
from files.strict_json import load_strict
from files.typed_json import read_typed, typed

Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4}$")]


@dataclass(frozen=True)
class Split:
    tokens: Count
    share: float = 1.0


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Sha256


@dataclass(frozen=True)
class Shape:
    splits: dict[str, Split]
    files: tuple[Strict, ...] = ()
    by_name: dict[str, dict[str, list[Count]]] | None = None
    name: str | None = None


def written(folder, value):
    path = folder / "x.json"
    path.write_bytes(value if type(value) is bytes else json.dumps(value).encode())
    return path


def test_a_file_of_the_shape_is_read_as_its_types(tmp_path):
    value = {
        "splits": {"train": {"tokens": 3, "share": 2, "newer": "ignored"}},
        "files": [{"sha256": "00ff"}],
        "by_name": {"a": {"b": [0]}},
    }
    shape = read_typed(written(tmp_path, value), Shape)
    assert shape == Shape({"train": Split(3, 2.0)}, (Strict("00ff"),), {"a": {"b": [0]}})
    assert type(shape.splits["train"].share) is float
    assert read_typed(tmp_path / "x.json", dict[str, Any]) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1], "expected object, got array at $"),
        ({}, "object missing required field splits at $"),
        ({"splits": {"train": {"tokens": 1.0}}}, "expected int, got float at $.splits.train."),
        ({"splits": {"train": {"tokens": True}}}, "expected int, got bool at $.splits.train."),
        ({"splits": {"a b": {"tokens": "1"}}}, "expected int, got str at $.splits['a b'].tokens"),
        ({"splits": {"\x1b\n": {}}}, "missing required field tokens at $.splits['\\x1b\\n']"),
        ({"splits": {"x" * 999: 1}}, f"expected object, got int at $.splits.{'x' * 60}"),
        (
            {"splits": {f"s{index}": {"tokens": 7 - 8 * (index == 5)} for index in range(9)}},
            "expected int >= 0 at $.splits.s5.tokens",
        ),
        (
            {"splits": {}, "files": [{"sha256": "0000"}, {"sha256": "xxxx"}]},
            "expected str matching regex '^[0-9a-f]{4}$' at $.files[1].sha256",
        ),
        (
            {"splits": {}, "files": [{"sha256": "0000", "size": 1}]},
            "object contains unknown field size at $.files[0]",
        ),
        (
            {"splits": {}, "by_name": {"a": {"b": [1]}, "c": {"d": [1], "e": [1, -1], "f": [1]}}},
            "expected int >= 0 at $.by_name.c.e[1]",
        ),
        (
            {"splits": {"a": 1}, "deep": json.loads("[" * 900 + "]" * 900)},
            "expected object, got int at $.splits",
        ),
        ({"splits": {}, "\ud800": 1}, "it holds the key '\\ud800'"),
        ({"splits": {"a": {"\ud800": 1}, "b": 1}}, "it holds the key '\\ud800'"),
        ({"splits": {}, "name": 3}, "expected str | null, got int at $.name"),
        ({"splits": {"train": {"tokens": 1, "share": "NaN"}}}, "expected float, got str at "),
    ],
)  # fmt: skip
def test_another_shape_is_one_line_with_the_place(tmp_path, value, says):
    path = written(tmp_path, value)
    with pytest.raises(RunError) as caught:
        read_typed(path, Shape)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    # The file's values are not touched by looking for the place.
    before = json.dumps(value)
    with pytest.raises(RunError):
        typed(value, Shape, path)
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"a": 1', "is not valid JSON"),
        (b"hello", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b'{"a": NaN}', "is not valid JSON (NaN is not JSON)"),
        (b"[-Infinity]", "is not valid JSON (-Infinity is not JSON)"),
        (b"[1e999]", "is not valid JSON (the number 1e999 is too large)"),
        (b'{"a": -1e999}', "is not valid JSON (the number"),
        (b"1" * 21, "is not valid JSON (the number 11111111111111111111... has 21 digits)"),
        (b"9" * 5000, "is not valid JSON (the number"),
        (b"[" * 100_000, "is not valid JSON (its values are nested too deeply)"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "is not valid JSON (the key 'b' is there twice)"),
        (b"[" + b"1," * 50 + b"1]", "more than the 64 that are allowed"),
    ],
)
def test_what_is_no_strict_json_is_refused_before_its_shape_is_looked_at(tmp_path, data, says):
    path = written(tmp_path, data)
    with pytest.raises(RunError) as caught:
        read_typed(path, list[Any], max_bytes=64 if len(data) < 1000 else 1 << 20)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"x\.json is missing"):
        read_typed(tmp_path / "x.json", dict)
    written(tmp_path, {})
    (tmp_path / "link").symlink_to("x.json")
    os.mkfifo(tmp_path / "pipe")
    for name, says in {"link": "a symbolic link", "pipe": "regular file", "": "regular"}.items():
        with pytest.raises(RunError, match=f"cannot read .*{says}"):
            read_typed(tmp_path / name, dict)


def test_strict_json_is_read():
    assert load_strict(b'{"a": [1, -2.5e3, null, "\xc3\xa9"]}') == {"a": [1, -2500.0, None, "é"]}
    assert load_strict("9" * 20) == int("9" * 20)
