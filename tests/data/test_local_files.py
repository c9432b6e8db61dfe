"""Local files are read as they are: their bytes, their numbers, whatever else is in them."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import os
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from texts import zstandard

from data.errors import DataError
from data.sources import hub_dataset
from data.sources.local_files import split_of_name
from data.sources.open_corpus import open_corpus
from settings.data import DataSettings


@pytest.fixture
def read(tmp_path, local):
    """Write bytes to a file of a name and return its documents, in order."""

    def documents(name, content, **changes):
        path = tmp_path / "read" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        corpus = open_corpus(local(path=str(path), **changes))
        return [document.text for part in corpus.parts for document in part.read()]

    return documents


TEXTS = [
    "a\r\nb\r\n",
    "a\rb",
    "no end",
    "a\n\r\nb\r",
    "\ufeffmark\n",
    "\n\n",
    "\x0b\x1c\u2028\x85 a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_not_a_byte_is_translated_added_or_lost(read, text):
    assert read("a.txt", text) == [text]
    assert "".join(read("a.txt", text, document_start="b|mark")) == text
    assert read("a.jsonl", json.dumps({"text": text})) == [text]
    if text.strip():
        quoted = 'id,text\r\n1,"' + text.replace('"', '""') + '"\r\n'
        assert read("a.csv", quoted) == [text]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_document_start_sees_every_end_of_a_line(read, end):
    text = f"ACT 1{end}x{end}ACT 2{end}y ACT 3"
    found = read("a.txt", text, document_start="^ACT [0-9]\n?$")
    assert found == [f"ACT 1{end}x{end}", f"ACT 2{end}y ACT 3"]


EARLY = '"x": null, "n": 1, "l": [1], "o": {"a": 1}, "d": "2021-03-01"'
LATER = {
    "new key": f'{EARLY}, "late": [1]',
    "key gone": '"n": 1',
    "null becomes a string": EARLY.replace("null", '"s"'),
    "number becomes a string": EARLY.replace('"n": 1', '"n": "s"'),
    "number becomes an object": EARLY.replace('"n": 1', '"n": {"a": 1}'),
    "list becomes an object": EARLY.replace("[1]", '{"a": 1}'),
    "object of other keys": EARLY.replace('{"a": 1}', '{"z": "1"}'),
    "number of 5000 digits": EARLY.replace("1,", "1" * 5000 + ","),
    "date becomes a word": EARLY.replace("2021-03-01", "soon"),
}


@pytest.mark.parametrize("kind", LATER)
def test_columns_that_nobody_asked_for_decide_nothing(read, kind):
    rows = [f'{{"text": "t", {EARLY}}}'] * 9500 + [f'{{"text": "last", {LATER[kind]}}}'] * 50
    assert read("a.jsonl", "\n".join(rows)) == ["t"] * 9500 + ["last"] * 50


def test_parquet_files_may_differ_in_all_other_columns(read, tmp_path, local):
    folder = tmp_path / "tables"
    folder.mkdir()
    for i, other in enumerate(([1, 2], ["a", "b"], [{"k": 1}, None])):
        table = pa.table({"other": other, "text": [f"{i}a", f"{i}b"]})
        pyarrow.parquet.write_table(table, folder / f"{i}.parquet")
    corpus = open_corpus(local(path=str(folder)))
    texts = [document.text for part in corpus.parts for document in part.read()]
    assert texts == ["0a", "0b", "1a", "1b", "2a", "2b"]


NUMBERS = ["1", "2.5", "1.0", "1e5", "1E-07", "-0", "12345678901234567890123", "true", "false",
           "0.1", "3.14159265358979323846", "NaN"]  # fmt: skip


@pytest.mark.parametrize("layout", ["lines", "array", "pretty"])
def test_json_values_are_written_as_in_the_file(read, layout):
    rows = [f'{{"v": {number}, "day": "2021-03-01", "t": "x"}}' for number in NUMBERS]
    content = "\n".join(rows) if layout == "lines" else "[" + ",\n".join(rows) + "]"
    if layout == "pretty":
        content = "\n".join(row.replace(", ", ",\n  ") for row in rows)
    found = read("a.json", content, text_template="{v} {day} {t}")
    assert found == [f"{number} 2021-03-01 x" for number in NUMBERS]


PARQUET_VALUES = [
    (pa.int64(), 2**63 - 1, "9223372036854775807"),
    (pa.uint8(), 7, "7"),
    (pa.float64(), 1.0, "1.0"),
    (pa.float32(), 0.1, "0.1"),
    (pa.bool_(), True, "true"),
    (pa.decimal128(30, 2), decimal.Decimal("12345678901234567.50"), "12345678901234567.50"),
    (pa.date32(), datetime.date(2021, 3, 1), "2021-03-01"),
    (pa.timestamp("us"), datetime.datetime(2021, 3, 1, 12), "2021-03-01T12:00:00"),
    (pa.timestamp("s", "UTC"), datetime.datetime(2021, 3, 1, tzinfo=datetime.UTC),
     "2021-03-01T00:00:00+00:00"),
    (pa.time32("s"), datetime.time(7, 5), "07:05:00"),
    (pa.large_string(), "x", "x"),
    (pa.dictionary(pa.int8(), pa.string()), "y", "y"),
]  # fmt: skip


def test_parquet_values_are_written_plainly(tmp_path, local):
    (tmp_path / "corpus").mkdir()
    columns = {f"c{i}": pa.array([v], t) for i, (t, v, _) in enumerate(PARQUET_VALUES)}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "corpus" / "train.parquet")
    template = "|".join(f"{{{name}}}" for name in columns)
    (found,) = open_corpus(local(text_template=template)).parts[0].read()
    assert found.text == "|".join(written for _, _, written in PARQUET_VALUES)


@pytest.mark.parametrize("streaming", [False, True])
def test_values_of_hub_rows_are_written_likewise(local, streaming):
    columns = {f"c{i}": pa.array([v], t) for i, (t, v, _) in enumerate(PARQUET_VALUES)}
    rows = datasets.Dataset(pa.table(columns))
    rows = rows.to_iterable_dataset() if streaming else rows
    template = "|".join(f"{{{name}}}" for name in columns)
    (found,) = hub_dataset._rows(rows, "split x", local(text_template=template))
    assert found.text == "|".join(written for _, _, written in PARQUET_VALUES)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", '{"text": "a"}\r\n\r\n{"text": "b"}', ["a", "b"]),
        ("a.jsonl", '\ufeff{"text": "a"}\n', ["a"]),
        ("a.jsonl", '{"text": "a\tb"}\n', ["a\tb"]),
        ("a.jsonl", '{"text": "a\u2028b"}\n', ["a\u2028b"]),
        ("a.jsonl", '{"text": "a"}{"text": "b"}\n{"text": "c"}', ["a", "b", "c"]),
        ("a.jsonl", '{"text": "a"}\r{"text": "b"}\r', ["a", "b"]),
        ("a.json", '{\n "text": "a",\n "n": {\n}\n}\n{\n"text": "b"\n}\n', ["a", "b"]),
        ("a.json", '\n [\n{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ("a.json", '["a",\n "b"]', ["a", "b"]),
        ("A.JSONL", '{"text": "\\ud83d\\ude00"}', ["\U0001f600"]),
        ("a.csv", '\ufefftext,n\r\n"a, ""b""\r\nc",1\r\n\r\nd,2', ['a, "b"\r\nc', "d"]),
        ("a.csv", '\ufeff"text","n, m"\r\n"a",1\r\n', ["a"]),
        ("a.csv", "\r\n\r\ntext\r\na", ["a"]),
        ("a.tsv", "n\ttext\n1\ta, b\n", ["a, b"]),
        ("a.CSV", "text\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
        ("a.TXT.GZ", gzip.compress(b"one") + gzip.compress(b" two\r\n"), ["one two\r\n"]),
        (
            "a.txt.zst",
            zstandard(b"one") + zstandard(b"2"),
            ["one2"],
        ),
    ],
)
def test_these_are_read(read, name, content, texts):
    assert read(name, content) == texts


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WIDE = "Größe und Länge,\neine Zeile und noch eine\n"
EAST = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002\n" * 9
NINE = "".join(json.dumps({"text": letter}) + "\n" for letter in "abcdefghi")
CUT = io.BytesIO()
pyarrow.parquet.write_table(pa.table({"text": ["a"] * 50}), CUT)
FOREIGN = [
    ("a.jsonl", NINE + '{"text": "x\n' + NINE, "line 10: "),
    ("a.jsonl", NINE[:-5], "line 9: "),
    ("a.jsonl.gz", gzip.compress(NINE.encode() + b"{broken\n"), "line 10: "),
    ("a.jsonl", NINE.encode() + b'{"text": "\xe9"}\n', "line 10 is not UTF-8"),
    ("a.txt", b"\xe9t\xe9\n", "line 1 is not UTF-8"),
    ("a.jsonl", "", "is empty"),
    ("a.jsonl", "\n\n", "holds no rows"),
    ("a.jsonl", NINE + '{"text": 2}', "row 10: 'text' is a number, not a string"),
    ("a.jsonl", NINE + '{"text": null}', "row 10: 'text' is null"),
    ("a.jsonl", NINE + '{"text": "\\ud800"}', "line 10: 'text' holds half of a surrogate pair"),
    ("a.jsonl", '{"body": "a", "id": 1}\n', "no column 'text'; its columns are body, id"),
    ("a.json", '[\n{"text": "a"},\n{"text": }\n]', "line 3: "),
    ("a.parquet", "PAR1 no", "cannot be read as parquet"),
    ("a.parquet", CUT.getvalue()[:-10], "cannot be read as parquet"),
    ("a.txt", LFS, "Git LFS pointer.*git lfs pull"),
    ("a.jsonl", LFS, "git lfs pull"),
    ("a.txt", LFS.replace("git-lfs", "hawser"), "git lfs pull"),
    ("a.parquet", LFS, "git lfs pull"),
    ("a.jsonl.gz", LFS, "git lfs pull"),
    ("a.txt.zst", LFS, "git lfs pull"),
    ("a.json", "/annex/objects/SHA256E-s12--ab.json\n", "git annex get"),
    ("a.jsonl", "<!DOCTYPE html>\n<html>not found</html>", "line 1: .*page of HTML"),
    ("a.txt", WIDE.encode("utf-16"), r"UTF-16 text; set data\.encoding=utf-16,"),
    ("a.jsonl", '{"text": "ab"}'.encode("utf-16"), r"data\.encoding=utf-16,"),
    ("a.txt", WIDE.encode("utf-16-le"), r"data\.encoding=utf-16-le,"),
    ("a.txt", WIDE.encode("utf-16-be"), r"data\.encoding=utf-16-be,"),
    ("a.txt", EAST.encode("utf-16-le"), r"data\.encoding=utf-16-le,"),
    ("a.txt", EAST.encode("utf-16-be"), r"data\.encoding=utf-16-be,"),
    ("a.txt", WIDE.encode("utf-32"), r"data\.encoding=utf-32,"),
    ("a.txt", WIDE.encode("utf-32-be"), r"data\.encoding=utf-32-be,"),
    ("a.txt", gzip.compress(b"x"), r"gzip data.*ending \.gz"),
    ("a.jsonl", bz2.compress(b"x"), r"bzip2 data.*ending \.bz2"),
    ("a.txt", zstandard(b"x"), r"Zstandard data.*ending \.zst"),
    ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "a PDF document.*convert it to text"),
    ("a.txt", b"\x89PNG\r\n\x1a\nxx", "a PNG image"),
    ("a.txt", b"PK\x03\x04" + b"\x00" * 26 + b"[Content_Types].xml", "an Office document"),
    ("a.txt", b"PK\x03\x04" + b"\x00" * 26 + b"a.txt", "a zip archive.*unpack"),
    ("a.csv", b"PAR1\x15\x04", r"a parquet file.*ending \.parquet"),
    ("a.txt", bytes(range(256)) * 4, "line 2 is not UTF-8; convert it to text.*binary"),
    ("a.txt.gz", b"plain text", r"cannot be read as gz .*remove the ending \.gz"),
    ("a.txt.zst", zstandard(b"x" * 999)[:-4], "cannot be read as zst"),
    ("a.csv", "text,n\na, b,1\n", "line 2 has 3 fields where the header has 2"),
    ("a.csv", 'text\nx\n"a"b\n', "begins in line 3: ',' expected after .*put a text that holds"),
    ("a.csv", 'text\n"x\ny"\n"a\nb\n', "begins in line 4: unexpected end of data"),
    ("a.tsv", 'id\ttext\n1\t"a"b\n', r"line 2: '\\t' expected"),
    ("a.csv", "text,text\na,b\n", "has more than one column 'text'"),
    ("a.jsonl", "{}\n", "has no column 'text'; it has none: set data.text_column"),
]


@pytest.mark.parametrize(("name", "content", "message"), FOREIGN)
@pytest.mark.parametrize("invalid", ["refuse", "replace"])
def test_what_is_not_text_is_named_with_a_way_out(read, name, content, message, invalid):
    if invalid == "replace" and "not UTF-8" in message:
        pytest.skip("asked for")
    with pytest.raises(DataError, match=rf"/read/{name}\b.*{message}") as caught:
        read(name, content, invalid_utf8=invalid)
    assert "invalid_utf8" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["PK is short for", "GIF89a is a format", "BZh91AY", "PAR1 is how it begins", "%PDF-", "MZ",
     "RIFF raff", "version https://git-lfs.github.com/spec/v1\nis what a pointer begins with",
     "/annex/objects/ is a folder", "<!DOCTYPE html>\n<p>", "a\x00b", "\x1b[1mbold\x1b[0m"],
)  # fmt: skip
def test_text_about_such_files_is_text(read, text):
    assert read("a.txt", text) == [text]


def test_replacing_is_advised_only_for_a_few_damaged_bytes(read):
    with pytest.raises(DataError, match=r"line 3 is .*data\.encoding .*1 byte is.*invalid_utf8"):
        read("a.txt", b"good line\n" * 2 + b"\xff" + b"good line\n" * 500)
    for text, encoding in (
        ("Ein Gruß über Größe.\n" * 50, "latin-1"),
        ("café", "cp1252"),
        ("Привет, мир\n" * 9, "koi8-r"),
        (EAST, "gb18030"),
        ("日本語、の文。\n" * 9, "shift_jis"),
    ):
        with pytest.raises(DataError, match=r"line 1 is not UTF-8; .*data\.encoding") as caught:
            read("a.txt", text.encode(encoding))
        assert "invalid_utf8" not in str(caught.value)
        assert "binary" not in str(caught.value)


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16", "UTF-16-LE", "utf_32", "cp037"]
)
def test_other_encodings_are_read_where_they_are_named(read, encoding):
    text = "Größe\r\nund\rLänge"
    rows = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    assert read("a.txt", text.encode(encoding), encoding=encoding) == [text]
    assert read("a.jsonl", (rows * 2).encode(encoding), encoding=encoding) == [text] * 2
    assert read("a.csv", f'text\n"{text}"'.encode(encoding), encoding=encoding) == [text]
    lines = read("a.txt", text.encode(encoding), encoding=encoding, document_start="und")
    assert lines == ["Größe\r\n", "und\rLänge"]


def test_an_encoding_that_does_not_fit_is_named(read):
    with pytest.raises(DataError, match=r"line 2 is not ascii \(data\.encoding\); set data\.enc"):
        read("a.txt", "a\né", encoding="ascii")
    with pytest.raises(DataError, match=r"line 2 is not utf-16 .*damaged or cut short") as caught:
        read("a.txt", "Größe\nLänge".encode("utf-16")[:-1], encoding="utf-16")
    assert "binary" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"plain text", "utf-16", "is ASCII text, not utf-16"),
        (b"plain text", "utf-32-le", "is ASCII text, not utf-32-le"),
        ("gr\u00fcn".encode(), "UTF-16", r"no byte order mark.*set data\.encoding=utf-16-le or"),
        ("gr\u00fcn".encode("utf-16-le"), "utf-16", r"set data\.encoding=utf-16-le or"),
    ],
)
def test_text_that_a_wide_encoding_would_make_nonsense_is_refused(read, content, encoding, message):
    with pytest.raises(DataError, match=message):
        read("a.txt", content, encoding=encoding)


def test_a_column_that_is_there_twice_is_refused(tmp_path, local):
    (tmp_path / "corpus").mkdir()
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "corpus" / "a.parquet")
    with pytest.raises(DataError, match="more than one column 'text'"):
        next(open_corpus(local()).parts[0].read())


def test_an_encoding_is_refused_for_parquet(tmp_path, local):
    (tmp_path / "corpus").mkdir()
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "corpus" / "a.parquet")
    with pytest.raises(DataError, match=r"data\.encoding \('latin-1'\) .*parquet"):
        open_corpus(local(encoding="latin-1"))


@pytest.mark.parametrize("name", ["rot13", "hex", "base64", "nonsense", "undefined", "", "a\x00b"])
def test_what_is_no_text_encoding_is_refused(name):
    (problem,) = DataSettings(
        name="x", source="local", path="x", prepared_dir="p", encoding=name
    ).problems()
    assert problem.startswith(f"data.encoding ({name!r}) is no text encoding")
    assert "latin-1, cp1252" in problem


NAMES = {
    "test": "my_test_part2.txt|test/a.txt|Test.txt|test1.jsonl|test set.txt|eval/a.txt|"
    "EVAL-2/b.txt|my.testing.txt|a test/b.txt|evaluation_9.txt|2021test.txt",
    "validation": "validation-00000-of-00001.parquet|wiki.valid.txt|val.txt|"
    "c4-validation.00000-of-00008.json.gz|dev.jsonl|dev/a.txt|Dev-clean/1.txt|VAL.TXT|"
    "my_valid2.txt|validation set/y.txt",
    "train": "train.jsonl.zst|extra.jsonl|latest-values.txt|contest.txt|latest.txt|evaluate_x.txt|"
    "developer.txt|devices.txt|value.txt|tests.txt|training/x.txt|validity.txt|"
    "attest/a.txt|medieval.txt|trainer.txt",
}


@pytest.mark.parametrize("split", NAMES)
def test_documented_keywords_say_the_split_in_any_case(split):
    found = {name: split_of_name(name) for name in NAMES[split].split("|")}
    assert set(found.values()) == {split}, found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nosuchdir", "no such file or folder: nosuchdir"),
        ("~nobody-of-that-name/x", r"data\.path: "),
        ("a" * 5000, r"data\.path: "),
        ("{}/zipped", r"no file to read .*\.parquet.*found a\.zip; unpack"),
        ("{}/zipped/a.zip", r"a\.zip .*an archive; unpack it and set data\.path"),
        ("{}/book", r"unknown type; known are .*plain text: \.txt"),
        ("{}/book.pdf", r"book\.pdf is of unknown type; it is a PDF"),
        ("{}/fifo", r"is a pipe, .*write it to a file first"),
    ],
)
def test_a_path_that_cannot_be_read_has_a_way_out(tmp_path, local, monkeypatch, path, message):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("contacted the Hub"))
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "book").write_text("x")
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.7\n")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match=message):
        open_corpus(local(path=path.format(tmp_path)))
