import bz2
import dataclasses
import gzip
import json
import lzma

import datasets
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import sentences, zstandard

from data.errors import DataError
from data.sources.corpus import Document, join_rows
from data.sources.file_kinds import foreign_kind
from data.sources.open_corpus import open_corpus
from data.sources.python_library import python_files
from data.splits import split_by_hash
from settings.data import DataSettings


def all_documents(corpus):
    return {split: list(corpus.documents(split)) for split in corpus.splits}


def rows(*texts):
    return [Document(text, f"row {i}") for i, text in enumerate(texts)]


@pytest.fixture
def corpus_folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def test_rows_join_into_documents_at_each_heading():
    text = ["", " = One = \n", "", " body \n", " = = Section = = \n", " = Two = \n", " b"]
    joined = [d.text for d in join_rows(rows(*text), "^ = [^=]+ = \n?$")]
    assert joined == ["\n = One = \n\n body \n = = Section = = \n", " = Two = \n b\n"]
    assert [d.text for d in join_rows(rows("a", "", "b"), None)] == ["a", "", "b"]


def test_hash_split_has_about_the_asked_share_and_depends_on_the_key_only():
    keys = [str(i).encode() for i in range(4000)]
    share = sum(split_by_hash(key, 0.25) == "validation" for key in keys) / len(keys)
    assert 0.22 < share < 0.28
    assert split_by_hash(b"x", 0.25) == split_by_hash(b"x", 0.25)


def test_split_is_disjoint_and_stable_under_row_order(local, write_jsonl):
    texts = sentences(200)
    write_jsonl("a.jsonl", texts + texts[:20])
    first = all_documents(open_corpus(local()))
    write_jsonl("a.jsonl", texts[::-1])
    second = all_documents(open_corpus(local()))
    assert set(first) == {"train", "validation"}
    for split in first:
        assert set(first[split]) == set(second[split])
    assert not set(first["train"]) & set(first["validation"])
    assert set(first["train"]) | set(first["validation"]) == set(texts)


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "extra.jsonl"),
        ("part1.jsonl", "my_test_part2.jsonl"),
        ("a.txt", "b.txt", "c.jsonl", "d.parquet"),
        ("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"),
        ("a[1]*.jsonl", "sub/b.jsonl"),
    ],
)
def test_every_row_of_every_file_is_used(local, write_jsonl, corpus_folder, names):
    expected = []
    for i, name in enumerate(names):
        texts = sentences(10, start=10 * i)
        if name.endswith(".txt"):
            texts = ["\n\n".join(texts)]
            (corpus_folder / name).write_text(texts[0])
        elif name.endswith(".parquet"):
            datasets.Dataset.from_dict({"text": texts}).to_parquet(corpus_folder / name)
        else:
            write_jsonl(name, texts)
        expected += texts
    found = all_documents(open_corpus(local()))
    assert sorted(text for texts in found.values() for text in texts) == sorted(expected)


def test_every_file_that_is_not_used_is_named(local, write_jsonl, corpus_folder, tmp_path):
    write_jsonl("train.jsonl", sentences(3))
    write_jsonl("val.jsonl", sentences(3, start=3))
    (corpus_folder / "README.md").write_text("x")
    (tmp_path / "another").mkdir()
    (corpus_folder / "linked").symlink_to(tmp_path / "another")
    (corpus_folder / "gone.jsonl").symlink_to(tmp_path / "nothing")
    corpus = open_corpus(local(validation_split=None))
    unused = ["README.md", "gone.jsonl", "linked", "val.jsonl"]
    assert corpus.description["unused_files"] == unused
    assert any(note.endswith(": " + ", ".join(unused)) for note in corpus.notes)


def lines(*values):
    return "".join(json.dumps({"text": value}) + "\n" for value in values)


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read(local, corpus_folder, kind):
    texts = sentences(30)
    packed = COMPRESS[kind](lines(*texts).encode())
    (corpus_folder / f"train.jsonl.{kind}").write_bytes(packed)
    (corpus_folder / f"validation.txt.{kind}").write_bytes(COMPRESS[kind]("é\n\nx".encode()))
    found = all_documents(open_corpus(local()))
    assert found == {"train": texts, "validation": ["é\n\nx"]}
    (corpus_folder / f"train.jsonl.{kind}").write_bytes(packed[:-12])
    with pytest.raises(DataError, match=rf"train\.jsonl\.{kind}: ") as caught:
        all_documents(open_corpus(local()))
    assert "\n" not in str(caught.value)


def test_template_joins_columns(local, corpus_folder):
    rows = [{"title": f"T{i}", "n": i, "body": "b{x}", "rest": [1]} for i in range(4)]
    (corpus_folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(corpus_folder / "validation.parquet")
    template = "{title} {n}\n{{}} {body}"
    found = all_documents(open_corpus(local(text_template=template)))
    assert found["train"] == found["validation"] == [f"T{i} {i}\n{{}} b{{x}}" for i in range(4)]
    with pytest.raises(
        DataError, match=r"no column 'who'.*title, n, body, rest: set data\.text_tem"
    ):
        all_documents(open_corpus(local(text_template="{who}")))
    with pytest.raises(DataError, match="row 1: 'rest' is list"):
        all_documents(open_corpus(local(text_template="{rest}")))


@settings(max_examples=40, deadline=None)
@given(content=st.binary(min_size=1, max_size=60).filter(lambda data: not foreign_kind(data)))
@example(content=b"a\r\nb\rc")
def test_any_bytes_are_read_as_text_or_refused_by_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "train.txt").write_bytes(content)
    (folder / "validation.txt").write_text("x")
    replaced = DataSettings(
        name="x", source="local", path=str(folder), prepared_dir="p", invalid_utf8="replace"
    )
    expected = content.decode("utf-8", "replace")
    assert all_documents(open_corpus(replaced))["train"] == [expected]
    refused = dataclasses.replace(replaced, invalid_utf8="refuse")
    try:
        content.decode()
    except UnicodeDecodeError:
        with pytest.raises(DataError, match=r"train\.txt: line \d+ is not UTF-8; convert"):
            all_documents(open_corpus(refused))
    else:
        assert all_documents(open_corpus(refused))["train"] == [expected]


def test_text_bytes_are_known_before_reading(local, corpus_folder):
    texts = sentences(200)
    num_bytes = sum(len(text.encode()) for text in texts)
    (corpus_folder / "a.txt").write_text("".join(texts))
    assert open_corpus(local()).text_bytes == num_bytes
    (corpus_folder / "a.txt").unlink()
    rows = [{"text": text, "other": "x" * 1000} for text in texts]
    datasets.Dataset.from_list(rows).to_parquet(corpus_folder / "a.parquet")
    assert 0.8 < open_corpus(local()).text_bytes / num_bytes < 1.5


def test_missing_splits_list_those_there_are(local, write_jsonl):
    write_jsonl("test.jsonl", sentences(3))
    write_jsonl("train.parquet.gz", [])
    held_out = r"no training text; .*split test: test\.jsonl; not used: train\.parquet\.gz; rename"
    with pytest.raises(DataError, match=held_out + r".*set data\.train_split=test"):
        open_corpus(local())
    assert open_corpus(local(train_split="test")).splits == ("train", "validation")
    with pytest.raises(DataError, match=r"data\.train_split \('learn'\).*its splits are test"):
        open_corpus(local(train_split="learn"))
    write_jsonl("train.jsonl", sentences(3))
    with pytest.raises(DataError, match=r"data\.validation_split \('dev'\).*train"):
        open_corpus(local(validation_split="dev"))
    with pytest.raises(DataError, match="no split 'dev'; there are train, validation, test"):
        next(open_corpus(local()).documents("dev"))


def test_python_stdlib_leaves_out_tests_and_packages():
    names = [file.relative for file in python_files("python_stdlib")]
    assert "json/decoder.py" in names
    assert names == sorted(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages"}


def test_python_corpus_splits_by_file_name_and_decodes_as_python_does(tmp_path, monkeypatch):
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# \xe9\n")
    (tmp_path / "undeclared.py").write_bytes(b"# \xe9\n")
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx\n")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nothing")
    paths = {"stdlib": str(tmp_path), "purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
    choice = DataSettings(name="x", source="python_stdlib", validation_fraction=0.25)
    found = all_documents(open_corpus(choice))
    odd = ["# coding: latin-1\n# é\n", "# \ufffd\n", "\ufeffx\n"]
    expected = [*odd, *(f"x = {i}\n" for i in range(40))]
    assert sorted(found["train"] + found["validation"]) == sorted(expected)
    assert split_by_hash(b"m7.py", 0.25) == (
        "train" if "x = 7\n" in found["train"] else "validation"
    )


def test_a_folder_that_cannot_be_listed_is_refused(local, write_jsonl, monkeypatch):
    write_jsonl("train.jsonl", sentences(3))

    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/private"))
        yield from ()

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DataError, match=r"data\.path: cannot read .*Permission denied.*private"):
        open_corpus(local())


def test_only_the_asked_columns_of_parquet_are_read(local, corpus_folder, monkeypatch):
    rows = [{"text": text, "image": b"x" * 100} for text in sentences(300)]
    datasets.Dataset.from_list(rows).to_parquet(corpus_folder / "train.parquet")
    asked = []
    iter_batches = pyarrow.parquet.ParquetFile.iter_batches

    def note(self, batch_size, **options):
        asked.append((batch_size, options["columns"]))
        return iter_batches(self, batch_size, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", note)
    found = all_documents(open_corpus(local()))
    assert sorted(found["train"] + found["validation"]) == sorted(sentences(300))
    assert asked[0] == (128, ["text"])
