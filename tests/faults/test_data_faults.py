"""Prepared data that was damaged, exchanged or cut short, and preparations that cannot go on."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import filelock
import numpy as np
import pytest

from data import pipeline
from data.batches import TrainingWindows
from data.errors import DataError
from data.pipeline import prepare, prepared_folder
from data.prepared import PreparedData
from data.preparing import packing
from data.shards import shard
from data.shards import stream as shard_stream
from data.shards.stream import TokenStream
from data.tokenizing.pretrained import load_pretrained
from data.tokenizing.tokenizer import load_tokenizer
from settings.data import DataSettings, TokenizerSettings
from tests.data.texts import file_bytes, flip, forge, quiet

ROOT = Path(__file__).parents[2]
BYTES = TokenizerSettings(name="bytes", kind="bytes")


def write_corpus(folder, words, number):
    folder.mkdir(parents=True)
    for split, count in (("train", number), ("validation", number // 4)):
        rows = [json.dumps({"text": f"{words} {split} {i:04d}"}) + "\n" for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(rows))


def settings_for(folder, **changes):
    values = {"name": "test", "source": "local", "path": str(folder / "corpus")}
    values |= {"prepared_dir": str(folder / "prepared"), "shard_tokens": 200, "num_workers": 1}
    return DataSettings(**(values | changes))


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine")
    write_corpus(folder / "corpus", "some words", 40)
    return prepare(settings_for(folder), BYTES, quiet)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    write_corpus(folder / "corpus", "other text", 300)
    tokenizer = TokenizerSettings(name="bpe", kind="bpe", vocab_size=280)
    return prepare(settings_for(folder), tokenizer, quiet)


@pytest.fixture
def folder(genuine, tmp_path):
    return shutil.copytree(genuine.folder, tmp_path / "prepared")


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", "some words", 40)
    return tmp_path


def read_everything(folder):
    """Open all that a prepared folder holds, as training, evaluation and generation do."""
    prepared = PreparedData(folder)
    streams = [prepared.stream(split) for split in prepared.splits]
    tokens = [stream.window(0, len(stream)).tolist() for stream in streams]
    return prepared.fingerprint, tokens, prepared.tokenizer().get_vocab()


def as_link(path):
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


FILES = [
    "manifest.json",
    "train-00000.npy",
    "train-00003.npy",
    "validation-00000.npy",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
]
DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "two bytes short": lambda path: os.truncate(path, path.stat().st_size - 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "emptied": lambda path: os.truncate(path, 0),
    "bit flipped": flip,
    "pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
    "link": as_link,
    "pipe": as_pipe,
    "folder": as_folder,
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(folder, monkeypatch, tmp_path, name, damage):
    if (name, damage) == ("manifest.json", "longer"):
        pytest.skip("white space after the JSON changes nothing")
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](folder / name)
    with pytest.raises(DataError, match=Path(name).name) as caught:
        read_everything(folder)
    assert str(folder) in str(caught.value)
    assert not Path("evil").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_corpus_is_refused_by_name(folder, other, name):
    content = (other.folder / name).read_bytes()
    if content == (folder / name).read_bytes():  # the tokenizers' settings are the same text
        content = content.replace(b"<|endoftext|>", b"<|end|>")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"npy" if name == "manifest.json" else Path(name).name):
        read_everything(folder)


def test_the_undamaged_folder_is_read(genuine, folder):
    assert read_everything(folder) == read_everything(genuine.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    ],
    ids=["merge", "map of characters"],
)
def test_a_tokenizer_that_makes_the_library_panic_is_refused(folder, change, capfd):
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text()) | change
    if "model" in change:  # longer than the second part of a merge
        content["model"]["continuing_subword_prefix"] = "####"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(path.parent)
    with pytest.raises(DataError, match=r"tokenizer\.path .*cannot load a tokenizer"):
        load_pretrained(str(path.parent))
    assert "panicked" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            r"tokenizer\.json is a Git LFS pointer.*git lfs pull",
        ),
        ("{", "a file in it is damaged .*; restore it"),
    ],
)
def test_a_folder_of_yours_is_not_sought_on_the_hub(folder, content, message):
    (folder / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_pretrained(str(folder / "tokenizer"))
    assert "revision" not in str(caught.value)


def test_two_shards_of_equal_size_cannot_change_places(folder):
    first, second = folder / "train-00000.npy", folder / "train-00001.npy"
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    prepared = PreparedData(folder)  # opening the folder reads no tokens
    for read in (prepared.training_streams, prepared.verify, lambda: prepared.stream("train")):
        with pytest.raises(DataError, match=r"train-00000\.npy is not what was written"):
            read()
    assert len(prepared.stream("validation"))


@pytest.mark.parametrize("name", ["validation-00000.npy", "tokenizer/tokenizer.json"])
def test_what_training_reads_last_is_refused_first(folder, name):
    flip(folder / name)
    with pytest.raises(DataError, match=Path(name).name):
        PreparedData(folder).training_streams()


def test_a_shard_is_hashed_once_while_it_stays_the_same(folder, monkeypatch):
    verified = []
    verify = shard.Shard.verify

    def noted(self, *rest):
        verified.append(self._path.name)
        verify(self, *rest)

    monkeypatch.setattr(shard.Shard, "verify", noted)
    path = folder / "validation-00000.npy"
    for file in folder.glob("*.npy"):
        os.utime(file, (10**9, 10**9))
    for _ in range(3):
        PreparedData(folder).stream("validation")
    assert verified.count(path.name) == 1
    # Changed just now: two changes within a tick of the clock would look the same.
    os.utime(path)
    for _ in range(2):
        PreparedData(folder).stream("validation")
    assert verified.count(path.name) == 3
    flip(path)
    os.utime(path, (10**9, 10**9 + 1))
    with pytest.raises(DataError, match="validation-00000"):
        PreparedData(folder).stream("validation")


def test_hashing_a_shard_takes_little_memory(tmp_path):
    tokens = np.zeros(2**24, np.uint16)
    entry = shard.write_array(tmp_path / "x.npy", tokens)
    del tokens
    tracemalloc.start()
    try:
        TokenStream([tmp_path / "x.npy"], 5, [entry["sha256"]])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**24  # half of the file


def test_a_shard_cut_short_in_use_is_an_error_and_no_dead_process(folder):
    prepared = PreparedData(folder)
    stream = prepared.stream("train")
    stream.window(200, 150)
    os.truncate(folder / "train-00001.npy", 128 + 2 * 70)
    stream.window(200, 70)
    with pytest.raises(DataError, match=r"train-00001\.npy cannot be read .it ends at byte 268"):
        stream.window(200, 150)


@pytest.mark.parametrize("change", ["exchanged", "removed", "unreadable"])
def test_a_shard_exchanged_in_use_is_noticed_when_it_is_opened_again(folder, monkeypatch, change):
    monkeypatch.setattr(shard_stream, "_MAX_OPEN", 1)
    stream = PreparedData(folder).stream("train")
    stream.window(0, 10)
    path = folder / "train-00001.npy"
    if change == "exchanged":
        shutil.copy(folder / "train-00002.npy", folder / "new")
        (folder / "new").rename(path)
    elif change == "removed":
        path.unlink()
    else:
        monkeypatch.setattr(os, "pread", _no_pread)
    with pytest.raises(DataError, match=r"train-00001\.npy"):
        stream.window(200, 10)


def _no_pread(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_a_wrong_width_for_the_vocabulary_is_refused(folder):
    forge(folder, lambda manifest: manifest["tokenizer"].update(vocab_size=70_000))
    with pytest.raises(DataError, match=r"train-00000\.npy holds 200 uint16 instead of 200 uint32"):
        PreparedData(folder)


def save_instead(tokens, **options):
    return lambda folder: np.save(folder / "train-00000.npy", tokens, **options)


DAMAGES_OF_A_FOLDER = {
    "another size": (save_instead(np.zeros(3, np.uint16)), "holds 3 uint16 instead of 200 uint16"),
    "another type": (save_instead(np.zeros(200, np.uint32)), "200 uint32 instead of 200 uint16"),
    "signed": (save_instead(np.zeros(200, np.int64)), r"\(200,\) int64 instead of a row of whole"),
    "pickle": (save_instead(np.array([{}], object), allow_pickle=True), "00000.npy cannot be read"),
    "edited by hand": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"utf8_bytes": ', '"utf8_bytes": 1')
        ),
        "manifest.json is damaged .*does not have the content_sha256",
    ),
    "another format": (lambda f: forge(f, lambda m: m.update(format_version=0)), "format 0, not 3"),
}


@pytest.mark.parametrize("damage", DAMAGES_OF_A_FOLDER)
def test_a_folder_that_is_not_what_was_written_is_refused_when_it_is_opened(folder, damage):
    inflict, message = DAMAGES_OF_A_FOLDER[damage]
    inflict(folder)
    with pytest.raises(DataError, match=rf"{message}.*delete {folder} and prepare again"):
        PreparedData(folder)


def test_a_folder_prepared_before_manifests_had_a_hash_is_read_and_verified(genuine, folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["content_sha256"]
    for split in manifest["splits"].values():
        del split["lost_bytes"]  # which are newer still
    path.write_text(json.dumps(manifest | {"format_version": 2}))
    again = PreparedData(folder)
    assert again.fingerprint == genuine.fingerprint
    assert again.splits["validation"].lost_bytes == 0
    again.verify()
    path.write_text(json.dumps(manifest))  # a present one has its hash
    with pytest.raises(DataError, match="damaged"):
        PreparedData(folder)


def test_the_fingerprint_is_of_shards_tokenizer_and_weights_alone(genuine):
    """Published results state it: another format of the manifest must not change it."""
    manifest = json.loads((genuine.folder / "manifest.json").read_text())
    content = {
        "format_version": 2,
        "tokenizer": manifest["tokenizer"]["sha256"]["tokenizer.json"],
        "weights": {},
        "shards": {
            split: [shard["sha256"] for shard in entry["shards"]]
            for split, entry in manifest["splits"].items()
        },
    }
    text = json.dumps(content, sort_keys=True)
    assert genuine.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def outside_the_vocabulary(folder):
    path = folder / "train-00001.npy"
    tokens = np.load(path, allow_pickle=False)
    tokens[[20, 30]] = 60_000
    np.save(path, tokens)


def test_a_token_outside_the_vocabulary_is_named_with_its_position(folder):
    outside_the_vocabulary(folder)
    message = r"train-00001\.npy holds token 60000 at position 220"
    with pytest.raises(DataError, match=message):
        PreparedData(folder).stream("train")
    # Without hashes it is found in the window that holds it.
    stream = TokenStream([folder / f"train-0000{i}.npy" for i in (0, 1)], 257)
    stream.window(210, 10)
    with pytest.raises(DataError, match=message):
        stream.window(210, 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("tokenizer"), "missing required field tokenizer"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(file="../x.npy"),
            r"'\.\./x\.npy' is not in the folder or is no \.npy file at .*shards\[0\]",
        ),
        (
            lambda m: m["splits"]["validation"].update(utf8_bytes=0),
            "hold 10 documents at .*validation",
        ),
        (
            lambda m: m["splits"]["train"].update(documents=10**6),
            "hold 1000000 documents at .*train",
        ),
        (lambda m: m["splits"].pop("validation"), "'validation' is missing"),
        (
            lambda m: m["tokenizer"].update(vocab_size="257"),
            "expected int, got str at .*vocab_size",
        ),
        (lambda m: m["tokenizer"].update(end_of_document_id=257), "not below vocab_size 257"),
        (
            lambda m: m["baselines"].update(bigram_perplexity=None),
            "got null at .*bigram_perplexity",
        ),
        (
            lambda m: m["source"].update(corpora=[1]),
            "got array at .*source.corpora",
        ),
        (lambda m: m.update(weights={"one": True}), r"got bool at \$\.weights\.one"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_by_key(folder, change, message):
    forge(folder, change)
    with pytest.raises(DataError, match=rf"manifest\.json is damaged: .*{message}"):
        PreparedData(folder)


def test_every_target_is_trained_on_or_dropped(tmp_path):
    streams = {}
    for name, length in (("one", 95), ("two", 40)):
        np.save(tmp_path / f"{name}.npy", np.arange(length, dtype=np.uint16))
        streams[name] = TokenStream([tmp_path / f"{name}.npy"], 200), 1.0
    windows = TrainingWindows(streams, 7, seed=0)
    # By hand: 95 tokens are 94 targets, 13 windows of 7 and 3 more; 40 are 39, 5 windows and 4.
    assert windows.tokens_dropped == 3 + 4
    trained = sum(stream.tokens_per_epoch for stream in windows.streams)
    assert trained == 91 + 35
    assert trained + windows.tokens_dropped == (95 - 1) + (40 - 1)


def test_a_batch_larger_than_the_data_reads_it_again(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(22, dtype=np.uint16))
    stream = TokenStream([tmp_path / "x.npy"], 22)
    inputs, _ = TrainingWindows({"x": (stream, 1.0)}, 7, seed=0).batch(0, 10)
    starts = inputs[:, 0].tolist()
    assert [sorted(starts[k : k + 3]) for k in (0, 3, 6)] == [[0, 7, 14]] * 3


# Where the text comes from


def test_the_manifest_has_size_hash_and_documents_of_each_file(genuine):
    corpus = Path(genuine.source["path"])
    assert {entry["file"] for entry in genuine.source["files"]} == {
        "train.jsonl",
        "validation.jsonl",
    }
    for entry in genuine.source["files"]:
        data = (corpus / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["bytes"] == len(data)
        assert entry["documents"] == data.count(b"\n")
        assert entry["documents"] == genuine.splits[entry["split"]].documents
    manifest = json.loads((genuine.folder / "manifest.json").read_text())
    assert manifest["settings"]["tokenizer"]["kind"] == "bytes"
    assert set(manifest["created_by"]) == {"python", "datasets", "tokenizers"}
    assert 1 < genuine.baselines["bigram_perplexity"] < genuine.baselines["unigram_perplexity"]


def test_a_series_with_a_hole_is_named(tmp_path):
    for name in ("train-00000-of-00003", "train-00002-of-00003", "v_1-of-2", "val-02-of-02"):
        write_corpus(tmp_path / name, name, 8)
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / name / "train.jsonl").rename(tmp_path / "corpus" / f"{name}.jsonl")
    lines = []
    prepare(settings_for(tmp_path), BYTES, lines.append)
    (told,) = [line for line in lines if "not there" in line]
    assert told.endswith("train-00001-of-00003.jsonl, val-01-of-02.jsonl")


def test_a_source_changed_while_it_is_read_is_refused(corpus, monkeypatch):
    add = packing.Packer._add

    def changing(self, *rest):
        (corpus / "corpus" / "train.jsonl").write_text('{"text": "another"}\n')
        return add(self, *rest)

    monkeypatch.setattr(packing.Packer, "_add", changing)
    with pytest.raises(DataError, match=r"train\.jsonl was changed while it was read"):
        prepare(settings_for(corpus), BYTES, quiet)
    assert not prepared_folder(settings_for(corpus), BYTES).exists()


def test_a_line_more_or_two_files_exchanged_is_other_data(corpus):
    before = prepare(settings_for(corpus), BYTES, quiet)
    train, validation = (corpus / "corpus" / f"{s}.jsonl" for s in ("train", "validation"))
    with train.open("a") as file:
        file.write('{"text": "one more line"}\n')
    after = prepare(settings_for(corpus), BYTES, quiet)
    train.rename(corpus / "x")
    validation.rename(train)
    (corpus / "x").rename(validation)
    exchanged = prepare(settings_for(corpus), BYTES, quiet)
    assert len({one.folder for one in (before, after, exchanged)}) == 3
    assert len({one.fingerprint for one in (before, after, exchanged)}) == 3


# Preparations that cannot go on


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of a size; what mounts is not allowed everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_is_named_and_more_room_ends_with_the_same_bytes(small_disk, tmp_path):
    write_corpus(tmp_path / "corpus", "words " * 20, 600)
    disk = small_disk("size=160k")
    changes = {"shard_tokens": 8000, "prepared_dir": str(disk)}
    with pytest.raises(DataError, match=rf"cannot write {disk}.*No space left on device"):
        prepare(settings_for(tmp_path, **changes), BYTES, quiet)
    subprocess.run(["mount", "-o", "remount,size=16M", str(disk)], check=True)
    redone = prepare(settings_for(tmp_path, **changes), BYTES, quiet)
    undisturbed = prepare(settings_for(tmp_path, shard_tokens=8000), BYTES, quiet)
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


def test_a_read_only_disk_is_named(small_disk, corpus):
    disk = small_disk("ro")
    settings = settings_for(corpus, prepared_dir=str(disk / "here"))
    with pytest.raises(DataError, match=r"data\.prepared_dir: cannot create .*Read-only"):
        prepare(settings, BYTES, quiet)
    settings = settings_for(corpus, prepared_dir=str(disk))
    with pytest.raises(DataError, match=rf"cannot write {disk}.*Read-only"):
        prepare(settings, BYTES, quiet)


def test_a_folder_that_vanishes_in_between_is_named(corpus, monkeypatch):
    commit = packing.Packer._commit

    def commit_and_vanish(self):
        commit(self)
        shutil.rmtree(self._folder)

    with monkeypatch.context() as patch:
        patch.setattr(packing.Packer, "_commit", commit_and_vanish)
        with pytest.raises(DataError, match=r"cannot write .*partial.*is gone"):
            prepare(settings_for(corpus), BYTES, quiet)
    prepare(settings_for(corpus), BYTES, quiet).verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir")],
)
def test_any_operation_may_fail_and_the_rerun_ends_with_the_same_bytes(
    corpus, genuine, monkeypatch, owner, name
):
    operation = getattr(owner, name)
    settings = settings_for(corpus)
    # The path of the corpus is in the manifest, so not the other test's.
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(corpus / "undisturbed")), BYTES, quiet
    )
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    failed = 0
    while True:
        left = [failed + 1]

        def fail_once(*args, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.EIO, "Input/output error")
            return operation(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail_once)
            try:
                prepare(settings, BYTES, quiet)
            except DataError as error:
                refusal = str(error)
            else:
                refusal = ""
        if left[0] > 0:
            break
        failed += 1
        # A lock's own folder may exist, and what is removed in vain is removed later.
        assert "Input/output error" in refusal or name in ("mkdir", "unlink"), failed
        redone = prepare(settings, BYTES, quiet)
        assert file_bytes(redone.folder) == file_bytes(undisturbed.folder), failed
        assert [p.suffix for p in redone.folder.parent.iterdir() if p != redone.folder] in (
            [],
            [".lock"],
        )
        shutil.rmtree(redone.folder)
    assert failed >= {"fsync": 30, "replace": 5, "rename": 1, "unlink": 3, "mkdir": 2}[name]


@pytest.mark.parametrize("where", ["_add", "_commit"])
def test_no_memory_says_what_to_lower(corpus, monkeypatch, where):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(packing.Packer, where, no_memory)
    with pytest.raises(DataError, match=r"no memory left to prepare test; .*data\.num_workers"):
        prepare(settings_for(corpus), BYTES, quiet)


def test_one_that_waits_says_for_whom_and_says_it_again(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "_REPEAT_S", 0.1)
    settings = settings_for(corpus)
    folder = prepared_folder(settings, BYTES)
    holding, ready = threading.Event(), threading.Event()

    def hold_then_prepare(say):
        if say.startswith("preparing"):
            ready.set()
            holding.wait(60)

    first = threading.Thread(target=prepare, args=(settings, BYTES, hold_then_prepare))
    first.start()
    assert ready.wait(60)
    lines, results = [], []
    second = threading.Thread(target=lambda: results.append(prepare(settings, BYTES, lines.append)))
    second.start()
    while len(lines) < 3:
        time.sleep(0.01)
    holding.set()
    first.join()
    second.join()
    assert lines[0] == lines[2]
    assert f"process {os.getpid()} on " in lines[0]
    assert lines[0].endswith(f" prepares {folder}; waiting for it")
    assert results[0].folder == folder
    assert not any(line.startswith("preparing") for line in lines)


def test_a_lock_without_a_holder_is_waited_for_all_the_same(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "_REPEAT_S", 0.05)
    folder = prepared_folder(settings_for(corpus), BYTES)
    folder.parent.mkdir()
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    lines = []
    with lock:
        waiting = threading.Thread(target=prepare, args=(settings_for(corpus), BYTES, lines.append))
        waiting.start()
        while len(lines) < 2:
            time.sleep(0.01)
    waiting.join()
    assert lines[0].startswith("another process prepares")


def overrides(corpus, **changes):
    settings = settings_for(corpus, **changes)
    return [
        "data=local",
        "tokenizer=bytes",
        *(
            f"data.{key}={getattr(settings, key)}"
            for key in ("name", "path", "prepared_dir", "shard_tokens", "num_workers")
        ),
    ]


# Small batches, so that there is something to do for several processes; and time to interrupt.
SLOWLY = """
import runpy, sys, time
from data.preparing import packing
packing._BATCH_CHARACTERS = 2000
commit = packing.Packer._commit
def slowly(self):
    commit(self)
    time.sleep(0.05)
packing.Packer._commit = slowly
sys.argv[0] = "data.prepare"
runpy.run_module("data.prepare", run_name="__main__")
"""


def start_preparing(corpus, workers, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *overrides(corpus, shard_tokens=2000, num_workers=workers)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_processes_that_encode_do_not_hear_ctrl_c(corpus, genuine, monkeypatch):
    commit = packing.Packer._commit
    told = set()

    def interrupt_children(self):
        commit(self)
        for children in Path("/proc/self/task").glob("*/children"):
            for child in set(map(int, children.read_text().split())) - told:
                wait_until_ignored(child)
                os.kill(child, signal.SIGINT)
                told.add(child)

    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 200)
    monkeypatch.setattr(packing.Packer, "_commit", interrupt_children)
    prepared = prepare(settings_for(corpus, num_workers=2), BYTES, quiet)
    assert len(told) >= 2
    assert prepared.fingerprint == genuine.fingerprint


def wait_until_ignored(process):
    """Wait until a process that is starting ignores SIGINT."""
    for _ in range(1000):
        (line,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
        if int(line, 16) >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.02)
    pytest.fail(f"process {process} would be interrupted")


def is_alive(group):
    """Look for a process of a group, and wait a little if there is one."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    time.sleep(0.02)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_done_and_shows_no_traceback(tmp_path, workers):
    write_corpus(tmp_path / "corpus", "some more words", 2000)
    settings = settings_for(tmp_path, shard_tokens=2000, num_workers=workers)
    folder = prepared_folder(settings, BYTES)
    partial = folder.with_name(folder.name + ".partial")
    process = start_preparing(tmp_path, workers, tmp_path)
    deadline = time.monotonic() + 120
    while not (partial / "train-00003.npy").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "kvlab: interrupted"
    assert f"what is done is kept in {partial}" in out
    # Nobody stays of the group.
    assert any(not is_alive(process.pid) for _ in range(500))
    lines = []
    redone = prepare(settings, BYTES, lines.append)
    assert lines[0].startswith("resuming the preparation of")
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other")), BYTES, quiet
    )
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


@pytest.mark.slow
def test_of_two_processes_that_prepare_at_once_one_waits(tmp_path):
    write_corpus(tmp_path / "corpus", "some more words", 600)
    processes = [start_preparing(tmp_path, 1, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    outs = [out for out, _ in said]
    assert sum("preparing test with tokenizer" in out for out in outs) == 1
    settings = settings_for(tmp_path, shard_tokens=2000)
    redone = prepare(settings, BYTES, lambda line: pytest.fail(line))
    undisturbed = prepare(
        dataclasses.replace(settings, prepared_dir=str(tmp_path / "other")), BYTES, quiet
    )
    assert file_bytes(redone.folder) == file_bytes(undisturbed.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (outside_the_vocabulary, r"train-00001.npy holds token 60000 at position 220 of its split"),
        (lambda f: flip(f / "validation-00000.npy", 140), "validation-00000.npy"),
        (lambda f: as_pipe(f / "tokenizer" / "tokenizer.json"), "it is not a regular file"),
    ],
    ids=["vocabulary", "flipped", "pipe"],
)
def test_a_user_is_told_in_one_line_before_any_step(corpus, tmp_path, damage, message):
    prepared = prepare(settings_for(corpus), BYTES, quiet)
    damage(prepared.folder)
    command = [sys.executable, str(ROOT / "train_model.py"), *overrides(corpus)]
    done = subprocess.run(
        [*command, "debug=smoke", "tracking=none", f"runs_dir={tmp_path}/runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert f"delete {prepared.folder} and prepare again" in last
    assert not [*Path(tmp_path, "runs").glob("*/metrics.jsonl")]
