import dataclasses
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from texts import file_bytes, flip, forge, quiet, sentences, tokens_of

from data.errors import DataError
from data.pipeline import prepare, prepared_folder
from data.prepared import PreparedData
from data.preparing import journal, packing, preparation
from data.sources.corpus import Document
from data.sources.local_formats import read_rows
from data.tokenizing import encoding
from data.tokenizing.tokenizer import END_OF_TEXT
from settings.data import DataSettings, TokenizerSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(write_jsonl):
    texts = sentences(120)
    texts[7] = f"text {END_OF_TEXT} with the special token's name"
    write_jsonl("train.jsonl", texts[:100])
    write_jsonl("validation.jsonl", texts[100:110])
    write_jsonl("test.jsonl", texts[110:])
    return {"train": texts[:100], "validation": texts[100:110], "test": texts[110:]}


@pytest.fixture
def prepared(local, byte_level, corpus):
    return prepare(local(shard_tokens=500), byte_level, quiet)


def test_packing_loses_nothing_and_documents_end_in_one_token(prepared, corpus):
    tokenizer = prepared.tokenizer()
    for split, texts in corpus.items():
        tokens = tokens_of(prepared, split)
        ends = np.flatnonzero(tokens == prepared.end_of_document_id)
        assert ends[-1] == len(tokens) - 1
        documents = np.split(tokens, ends + 1)[:-1]
        decoded = [tokenizer.decode(d[:-1].tolist(), skip_special_tokens=False) for d in documents]
        assert decoded == texts


def test_counts_are_those_of_the_original_text(prepared, corpus):
    assert set(prepared.splits) == {"train", "validation", "test"}
    for split, counts in prepared.splits.items():
        texts = corpus[split]
        num_bytes = sum(len(text.encode()) for text in texts)
        words = sum(len(text.split()) for text in texts)
        assert dataclasses.astuple(counts) == (
            len(texts),
            num_bytes + len(texts),
            num_bytes,
            words,
            0,
        )


def test_shards_are_of_the_stated_size_and_read_as_one_stream(prepared):
    shards = sorted(prepared.folder.glob("train-*.npy"))
    sizes = [len(np.load(shard, allow_pickle=False)) for shard in shards]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {500}
    whole = np.concatenate([np.load(shard, allow_pickle=False) for shard in shards])
    assert whole.dtype == np.uint16
    stream = prepared.stream("train")
    assert len(stream) == len(whole)
    for start, length in ((0, 1), (499, 2), (250, 1300), (len(whole) - 1, 1), (5, 0)):
        np.testing.assert_array_equal(stream.window(start, length), whole[start : start + length])
    with pytest.raises(IndexError):
        stream.window(len(whole) - 1, 2)


def test_preparing_again_does_nothing(local, byte_level, prepared, monkeypatch):
    monkeypatch.setattr(preparation, "open_corpus", lambda *_: pytest.fail("read the corpus again"))
    again = prepare(local(shard_tokens=500), byte_level)
    assert again.fingerprint == prepared.fingerprint


def test_folder_follows_what_determines_the_content(local, byte_level, corpus, write_jsonl):
    folder = prepared_folder(local(), byte_level)
    assert folder.name.startswith("test-bytes-")
    assert prepared_folder(local(), byte_level) == folder
    assert prepared_folder(local(shard_tokens=7), byte_level) != folder
    assert prepared_folder(local(), TokenizerSettings(name="bytes", kind="bpe")) != folder
    write_jsonl("train.jsonl", [*corpus["train"], "one more"])
    assert prepared_folder(local(), byte_level) != folder


def test_training_tokens_stop_at_the_document_that_reaches_the_limit(local, byte_level, corpus):
    limited = prepare(local(max_train_tokens=200), byte_level, quiet)
    whole = prepare(local(), byte_level, quiet)
    tokens = tokens_of(limited, "train")
    assert 200 <= len(tokens) < 200 + max(len(text.encode()) + 1 for text in corpus["train"])
    np.testing.assert_array_equal(tokens, tokens_of(whole, "train")[: len(tokens)])
    assert limited.splits["validation"] == whole.splits["validation"]


def test_max_train_tokens_stops_reading(local, byte_level, write_jsonl, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    write_jsonl("train-0.jsonl", sentences(100))
    write_jsonl("train-1.jsonl", [None])
    write_jsonl("validation.jsonl", sentences(3))
    limited = local(max_train_tokens=100, num_workers=1)
    assert prepare(limited, byte_level, quiet).splits["train"].tokens < 200


def test_line_ends_count_as_words_where_asked(local, byte_level, write_jsonl):
    write_jsonl("train.jsonl", ["a b\n\nc", "a b\n\nc\n"])
    write_jsonl("validation.jsonl", ["x"])
    for asked, words in ((False, 6), (True, 12)):
        prepared = prepare(local(count_line_ends_as_words=asked), byte_level, quiet)
        assert prepared.splits["train"].words == words


def assert_nothing_looks_finished(folder):
    assert not folder.exists()
    with pytest.raises(DataError):
        PreparedData(folder)


def interrupted(monkeypatch, local_settings, tokenizer, after_shards, label="train"):
    """Leave a preparation that an error ended after some whole shards of a split."""
    commit = packing.Packer._commit

    def commit_then_fail(self):
        commit(self)
        if len(self._writers[label].shards) >= after_shards:
            raise RuntimeError("midway")

    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_BATCH_CHARACTERS", 200)
        patch.setattr(packing.Packer, "_commit", commit_then_fail)
        with pytest.raises(RuntimeError, match="midway"):
            prepare(local_settings, tokenizer, lines.append)
    return lines


def test_resuming_reads_no_file_again_that_was_done(local, byte_level, write_jsonl, monkeypatch):
    for number in range(4):
        write_jsonl(f"train-{number}.jsonl", sentences(40, start=40 * number))
    write_jsonl("validation.jsonl", sentences(5, start=500))
    settings = local(shard_tokens=400, num_workers=1)
    lines = interrupted(monkeypatch, settings, byte_level, after_shards=6)
    folder = prepared_folder(settings, byte_level)
    assert any("kept in" in line and "the same command resumes it" in line for line in lines)
    assert_nothing_looks_finished(folder)
    read = []
    rows = read_rows

    def noted(file, *rest):
        read.append(file.relative)
        return rows(file, *rest)

    monkeypatch.setattr("data.sources.local.read_rows", noted)
    lines = []
    prepare(settings, byte_level, lines.append)
    assert lines[0].startswith("resuming the preparation of")
    assert read
    assert set(read) < {f"train-{number}.jsonl" for number in range(4)}


BROKEN_REMAINS = {
    "shard flipped": lambda f: flip(f / "train-00000.npy"),
    "shard gone": lambda f: (f / "train-00001.npy").unlink(),
    "journal cut": lambda f: os.truncate(f / "journal.json", 40),
    "journal names a file outside": lambda f: name_a_shard_outside(f),
    "journal of another shape": lambda f: (f / "journal.json").write_text(
        '{"number": 1, "state": {}, "arrays": {}}'
    ),
    "journal that is a list": lambda f: (f / "journal.json").write_text("[1]"),
    "tail flipped": lambda f: flip(next(f.glob("journal-*tail-train.npy"))),
    "tokenizer flipped": lambda f: flip(f / "tokenizer" / "tokenizer.json"),
    "other libraries": lambda f: forge_state(f, libraries={"tokenizers": "0.1"}),
    "older journal": lambda f: forge_state(f, journal_version=1),
}


def forge_state(folder, **changes):
    forge(folder, lambda record: record["state"].update(changes), "journal.json")


def name_a_shard_outside(folder):
    shutil.copy(folder / "train-00000.npy", folder.parent / "x.npy")
    shard = {"file": "../x.npy"}
    forge(
        folder,
        lambda record: record["state"]["splits"]["train"]["shards"][0].update(shard),
        "journal.json",
    )


def hash_split(write_jsonl, local):
    write_jsonl("train.jsonl", sentences(120))
    return local(shard_tokens=400)


def limited_hash_split(write_jsonl, local):
    return dataclasses.replace(hash_split(write_jsonl, local), max_train_tokens=1700)


def limited(write_jsonl, local):
    write_jsonl("train-0.jsonl", sentences(80))
    write_jsonl("train-1.jsonl", sentences(80, start=80))
    write_jsonl("test.jsonl", sentences(9, start=70))
    return local(shard_tokens=300, max_train_tokens=2500, drop_leaked_documents=True)


def mixture(write_jsonl, local):
    for name, start in (("one", 0), ("two", 60)):
        write_jsonl(f"{name}/train.jsonl", sentences(60, start=start))
        write_jsonl(f"{name}/validation.jsonl", sentences(8, start=start + 55))
    whole = local()
    corpora = {name: local(path=f"{whole.path}/{name}") for name in ("one", "two")}
    return DataSettings(
        name="test",
        source="mixture",
        corpora=corpora,
        weights={"one": 1.0, "two": 2.0},
        prepared_dir=whole.prepared_dir,
        shard_tokens=300,
        drop_leaked_documents=True,
    )


def python(write_jsonl, local):
    folder = write_jsonl("x.jsonl", []).parent
    for number, text in enumerate(sentences(100)):
        encoding = "latin-1" if number == 7 else "utf-8"
        (folder / f"m{number:03d}.py").write_text(
            f"# coding: {encoding}\n# {text}\n", encoding=encoding
        )
    (folder / "odd.py").write_bytes(b"# coding: nonsense\n\xff\n")
    return DataSettings(
        name="test",
        source="python_stdlib",
        validation_fraction=0.2,
        prepared_dir=local().prepared_dir,
        shard_tokens=300,
    )


@pytest.mark.parametrize("case", [hash_split, limited_hash_split, limited, mixture, python])
def test_neither_interruptions_nor_processes_change_a_byte_of_any_source(
    local, byte_level, write_jsonl, monkeypatch, tmp_path, case
):
    settings = case(write_jsonl, local)
    folder = str(tmp_path / "corpus")
    paths = {"stdlib": folder, "purelib": folder, "platlib": folder}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other"), num_workers=1),
        byte_level,
        quiet,
    )
    for after_shards, workers in ((1, 1), (2, 1), (4, 2)):
        changed = dataclasses.replace(settings, num_workers=workers)
        train = "train.one" if case is mixture else "train"
        interrupted(monkeypatch, changed, byte_level, after_shards, train)
        lines = []
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_BATCH_CHARACTERS", 130)
            redone = prepare(changed, byte_level, lines.append)
        assert lines[0].startswith("resuming the preparation of")
        assert redone.folder.name == undisturbed.folder.name
        assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)
        shutil.rmtree(redone.folder)


def test_a_complete_preparation_that_was_not_renamed_is_not_done_again(
    local, byte_level, corpus, monkeypatch, tmp_path
):
    def no_rename(self, target):
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_rename)
        with pytest.raises(DataError, match=r"cannot write .*went away.*data\.prepared_dir"):
            prepare(local(), byte_level, quiet)
    assert_nothing_looks_finished(prepared_folder(local(), byte_level))
    monkeypatch.setattr(preparation, "open_corpus", lambda *_: pytest.fail("read the corpus again"))
    prepare(local(), byte_level, quiet).verify()


def test_what_cannot_be_read_is_kept_and_a_new_file_of_no_use_changes_nothing(
    local, byte_level, corpus, monkeypatch, tmp_path
):
    settings = local(shard_tokens=400, num_workers=1)
    interrupted(monkeypatch, settings, byte_level, after_shards=3)
    (tmp_path / "corpus" / ".DS_Store").write_text("x")

    def fail(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "sha256_of_file", fail)
        with pytest.raises(DataError, match=r"cannot be read .*delete it to start over"):
            prepare(settings, byte_level, quiet)
    lines = []
    prepare(settings, byte_level, lines.append)
    assert lines[0].startswith("resuming the preparation of")


def test_prepared_dir_inside_the_corpus_is_refused(local, byte_level, corpus, tmp_path):
    inside = local(prepared_dir=str(tmp_path / "corpus" / "prepared"))
    with pytest.raises(DataError, match=r"data\.prepared_dir .* lies inside data\.path"):
        prepare(inside, byte_level)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_many_shards_hold_few_files_open(local, byte_level, corpus):
    prepared = prepare(local(shard_tokens=10), byte_level, quiet)
    assert prepared.num_shards["train"] > 200
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    stream = prepared.stream("train")
    tokens = np.concatenate([stream.window(i, 7) for i in range(0, len(stream) - 7, 7)])
    assert len(list(opened.iterdir())) - before <= 64
    assert np.array_equal(tokens, stream.window(0, len(tokens)))


@pytest.mark.parametrize("damage", BROKEN_REMAINS)
def test_damaged_remains_are_discarded(local, byte_level, corpus, monkeypatch, tmp_path, damage):
    settings = local(shard_tokens=400, num_workers=1)
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other")), byte_level, quiet
    )
    interrupted(monkeypatch, settings, byte_level, after_shards=3)
    folder = prepared_folder(settings, byte_level)
    BROKEN_REMAINS[damage](folder.with_name(folder.name + ".partial"))
    lines = []
    redone = prepare(settings, byte_level, lines.append)
    assert lines[0].startswith("discarding an interrupted preparation")
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


def test_what_did_not_change_is_not_written_again(local, byte_level, write_jsonl, monkeypatch):
    write_jsonl("train.jsonl", sentences(100))
    write_jsonl("validation.jsonl", sentences(10, start=200))
    written = []
    write_array = journal.write_array

    def noted(path, array):
        written.append(path.name)
        return write_array(path, array)

    monkeypatch.setattr(journal, "write_array", noted)
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 300)
    prepare(local(shard_tokens=400, num_workers=1), byte_level, quiet)
    train = [name for name in written if name.endswith("tail-train.npy")]
    assert len(train) > 5
    for once in ("tail-validation", "held_out-validation"):
        assert sum(name.endswith(f"{once}.npy") for name in written) == 1, once


def test_documents_of_another_split_are_counted_and_dropped_when_asked(
    local, byte_level, write_jsonl
):
    train, validation, test = sentences(20), sentences(4, start=30), sentences(4, start=40)
    write_jsonl("train.jsonl", [*train, validation[1], test[0], validation[1], "", train[0]])
    write_jsonl("validation.jsonl", [*validation, test[2], ""])
    write_jsonl("test.jsonl", test)
    lines = []
    kept = prepare(local(), byte_level, lines.append)
    assert kept.leaks == {
        "train in test": 1,
        "train in validation": 2,
        "validation in test": 1,
    }
    assert kept.splits["train"].documents == 24
    assert any(line.startswith("2 documents of train in validation") for line in lines)
    dropped = prepare(local(drop_leaked_documents=True), byte_level, lines.append)
    assert dropped.leaks == kept.leaks
    assert dropped.splits["train"].documents == 21
    assert dropped.splits["validation"] == kept.splits["validation"]
    decoded = dropped.tokenizer().decode(tokens_of(dropped, "train").tolist())
    assert validation[1] not in decoded


def test_split_by_hash_has_no_leaks(local, byte_level, write_jsonl):
    write_jsonl("train.jsonl", sentences(60) * 3)
    assert set(prepare(local(), byte_level, quiet).leaks.values()) == {0}


def test_what_does_not_fit_is_refused_before_anything_is_written_but_a_guess_warns(
    local, byte_level, tmp_path, monkeypatch
):
    # Of text files the size is that of their text, of JSON it is a guess.
    for name in ("corpus", "rows"):
        (tmp_path / name).mkdir()
    for number in range(20):
        split, text = ("train", "validation")[number % 10 == 0], "\n".join(sentences(8, number))
        (tmp_path / "corpus" / f"{split}-{number}.txt").write_text(text)
        (tmp_path / "rows" / f"{split}-{number}.jsonl").write_text(json.dumps({"text": text}))
    free = shutil.disk_usage("/")._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert prepare(local(max_train_tokens=300), byte_level, quiet).splits["train"].tokens >= 300
    lines = []
    prepare(local(path=str(tmp_path / "rows")), byte_level, lines.append)
    assert any("do not fit" in line and "is a guess" in line for line in lines)
    before = {*Path(local().prepared_dir).iterdir()}
    monkeypatch.setattr(packing.ShardWriter, "add", lambda *_: pytest.fail("wrote tokens"))
    with pytest.raises(DataError, match=r"about [\d.]+ kB of tokens .*data\.max_train_tokens"):
        prepare(local(), byte_level, quiet)
    assert [p for p in {*Path(local().prepared_dir).iterdir()} - before if p.is_dir()] == []


def test_killed_worker_is_reported_in_one_line(local, byte_level, corpus, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    monkeypatch.setattr(encoding, "_encode_in_worker", kill_this_process)
    with pytest.raises(DataError, match=r"was killed.*data\.num_workers=1"):
        prepare(local(num_workers=2), byte_level, quiet)


def kill_this_process(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_full_disk_is_named_and_cleaned_up(local, byte_level, corpus):
    pytest.importorskip("datasets")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*partial.*free.*data\.prepared_dir"):
            prepare(local(), byte_level, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in Path(local().prepared_dir).iterdir() if p.is_dir()] == []


def test_bad_settings_are_refused_all_at_once(local, byte_level):
    with pytest.raises(DataError, match=r"data\.shard_tokens \(0\).*; tokenizer\.kind"):
        prepare(local(shard_tokens=0), TokenizerSettings(name="x", kind="y"))


def test_corpus_of_empty_texts_is_refused(local, byte_level, write_jsonl):
    write_jsonl("train.jsonl", ["", ""])
    with pytest.raises(DataError, match="no text for split train"):
        prepare(local(), byte_level, quiet)


def test_lone_surrogate_names_its_document(local, byte_level, corpus, monkeypatch):
    monkeypatch.setattr(
        "data.sources.local.read_rows", lambda *_: iter([Document("a\ud800", "file row 3")])
    )
    with pytest.raises(DataError, match="file row 3: character 1 is half of a surrogate pair"):
        prepare(local(), byte_level, quiet)


def test_unknown_split_lists_those_there_are(prepared):
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        prepared.stream("dev")
