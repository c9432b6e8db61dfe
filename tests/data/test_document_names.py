"""Documents of a prepared split: their bytes, and the files that they were."""

import json
from types import SimpleNamespace

import pytest

import data.documents
from data.documents import document_bytes, document_names
from data.pipeline import prepare
from data.sources.python_library import PythonFile
from settings.data import DataSettings, TokenizerSettings

TEXTS = ["a", "no\ttwo\nlines <b>\x1b[31m", "é" * 50]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three documents in a file, in bytes as tokens."""
    folder = tmp_path_factory.mktemp("several")
    for split in ("train", "validation"):
        texts = [text + ("!" if split == "train" else "") for text in TEXTS]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text(lines)
    parent = tmp_path_factory.mktemp("prepared_several")
    settings = DataSettings(
        name="several", source="local", path=str(folder), prepared_dir=str(parent)
    )
    return prepare(settings, TokenizerSettings(name="bytes", kind="bytes"), lambda _: None)


def test_bytes_are_those_of_each_text(several, prepared, corpus_folder):
    assert document_bytes(several, "validation") == [len(text.encode()) for text in TEXTS]
    sizes = [path.stat().st_size for path in sorted(corpus_folder.glob("validation-*"))]
    assert document_bytes(prepared, "validation") == sizes


def test_a_file_is_known_by_its_content(prepared):
    names = document_names(prepared, "validation", [3, 0])
    assert names == {3: "validation-27.txt", 0: "validation-24.txt"}
    assert document_names(prepared, "validation", []) == {}


def test_one_of_many_in_a_file_has_its_number_and_its_first_words(several):
    assert document_names(several, "validation", [0, 1, 2]) == {
        0: "document 1: a",
        1: "document 2: no two lines <b>\\x1b[31m",
        2: f"document 3: {'é' * 40}...",
    }


def test_a_file_of_pythons_is_found_where_it_still_is(several, tmp_path, monkeypatch):
    content = {"html/entities.py": TEXTS[2], "other.py": "b", "gone.py": None}
    for name, text in content.items():
        path = tmp_path / name.replace("/", "_")
        if text is not None:
            path.write_text(text)
    files = [
        PythonFile(name, str(tmp_path / name.replace("/", "_")), len((text or "a").encode()))
        for name, text in content.items()
    ]
    monkeypatch.setattr(data.documents, "python_files", lambda source: files)
    like = {name: getattr(several, name) for name in ("tokenizer", "stream", "end_of_document_id")}
    of_python = SimpleNamespace(source={"source": "python_stdlib"}, **like)
    assert document_names(of_python, "validation", [0, 2]) == {
        0: "document 1: a",
        2: "html/entities.py",
    }
