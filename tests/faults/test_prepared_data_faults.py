"""Prepared data that was damaged, exchanged or cut short."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data.batches import TrainingWindows
from data.errors import DataError
from data.pipeline import prepare
from data.prepared import PreparedData
from data.shards import shard
from data.shards import stream as shard_stream
from data.shards.stream import TokenStream
from data.tokenizing.pretrained import load_pretrained
from data.tokenizing.tokenizer import load_tokenizer
from settings.data import TokenizerSettings
from tests.data.texts import (
    BYTES,
    flip,
    forge,
    overrides,
    quiet,
    settings_for,
    write_corpus,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    write_corpus(folder / "corpus", "other text", 300)
    tokenizer = TokenizerSettings(name="bpe", kind="bpe", vocab_size=280)
    return prepare(settings_for(folder), tokenizer, quiet)


@pytest.fixture
def folder(genuine, tmp_path):
    return shutil.copytree(genuine.folder, tmp_path / "prepared")


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
def test_one_line_says_so_before_any_step(corpus, tmp_path, damage, message):
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
