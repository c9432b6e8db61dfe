"""Whatever prepared data has become: it is read as what it was, or refused in one line."""

import contextlib
import json
import shutil
from collections import Counter
from random import Random

import numpy as np
import pytest
from effort import SEED, share_of
from mutations import mutated_bytes, mutated_json

from data.errors import DataError
from data.pipeline import prepare
from data.prepared import PreparedData
from data.preparing.journal import Journal
from data.shards.shard import Shard, write_array
from data.shards.stream import TokenStream
from data.tokenizing.tokenizer import end_of_document_id, load_tokenizer
from files.sealed import sealed, unsealed
from settings.data import DataSettings, TokenizerSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "corpus").mkdir()
    for name, number in (("train", 9), ("validation", 3)):
        rows = [json.dumps({"text": f"{name} {i} é"}) for i in range(number)]
        (folder / "corpus" / f"{name}.jsonl").write_text("\n".join(rows))
    settings = DataSettings(
        name="fuzz", source="local", path=str(folder / "corpus"), prepared_dir=str(folder / "out")
    )
    return prepare(settings, TokenizerSettings(name="bytes", kind="bytes"), lambda _: None)


@pytest.fixture
def folder(genuine, tmp_path):
    return shutil.copytree(genuine.folder, tmp_path / "prepared")


class Tried:
    """Counts inputs and their outcomes, and shows the input whose outcome is not allowed."""

    def __init__(self, path):
        self._path = path
        self.outcomes = Counter()

    def __call__(self, data, read, expected=None):
        """Write `data`, read it, and compare with `expected` unless that is None."""
        self._path.write_bytes(data)
        number = self.outcomes.total()
        where = f"input {number} of seed {SEED} for {self._path.name}: {data[:3000]!r}"
        try:
            value = read()
        except DataError:
            self.outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}; {where}") from error
        else:
            assert expected is None or value == expected, f"read as {value!r}; {where}"
            self.outcomes["read"] += 1

    def assert_number(self, number, refused=0.3):
        assert self.outcomes.total() >= number
        assert self.outcomes["refused"] >= refused * number, self.outcomes
        assert self.outcomes["read"], self.outcomes
        print(f"{self._path.name}: {dict(self.outcomes)}")


def facts(prepared):
    """Everything that a manifest decides, used as the rest of the project uses it."""
    return {
        "fingerprint": prepared.fingerprint,
        "revision": prepared.revision,
        "parts": [prepared.parts_of(split) for split in prepared.splits],
        "shards": prepared.num_shards,
        "bits": [
            (1.0 / counts.utf8_bytes if counts.documents else 0.0, counts)
            for counts in prepared.splits.values()
        ],
        "baseline": f"{prepared.baselines['bigram_perplexity']:.2f}",
        "vocabulary": f"{prepared.vocab_size:,} {prepared.end_of_document_id + 0}",
        "name": prepared.name + str(prepared.source["source"]),
        "leaks": sum(prepared.leaks.values()),
        "dropped": prepared.dropped_leaks,
        "weights": {name: float(weight) for name, weight in prepared.weights.items()},
    }


def test_a_damaged_manifest_is_refused(genuine, folder):
    path = folder / "manifest.json"
    data = path.read_bytes()
    value, expected = json.loads(data), facts(genuine)
    tried, random = Tried(path), Random(SEED)
    for number in range(share_of(14_000)):
        damaged = mutated_bytes(data, random) if number % 2 else mutated_json(value, random)
        tried(damaged, lambda: facts(PreparedData(folder)), expected)
    tried.assert_number(share_of(14_000), refused=0.8)


def test_a_forged_manifest_is_refused_or_of_the_right_types(folder):
    path = folder / "manifest.json"
    value = unsealed(json.loads(path.read_bytes()))
    tried, random = Tried(path), Random(SEED + 1)
    while tried.outcomes.total() < share_of(8_000):
        try:
            forged = json.dumps(sealed(json.loads(mutated_json(value, random)))).encode()
        except (ValueError, TypeError, RecursionError):
            continue
        tried(forged, lambda: bool(facts(PreparedData(folder))))
    tried.assert_number(share_of(8_000))


def test_a_damaged_shard_is_refused(genuine, folder):
    entry = genuine._shards["train"][0]
    path = folder / entry.file
    data = path.read_bytes()
    stream = genuine.stream("train")
    expected = stream.window(0, len(stream)).tolist()
    tried, random = Tried(path), Random(SEED + 2)

    def read():
        damaged = TokenStream([path], genuine.vocab_size, [entry.sha256])
        return damaged.window(0, len(damaged)).tolist()

    for _ in range(share_of(10_000)):
        tried(mutated_bytes(data, random), read, expected)
    tried.assert_number(share_of(10_000), refused=0.8)


def test_the_header_of_a_forged_shard_gives_an_array_of_the_files_size_or_is_refused(
    genuine, folder
):
    path = folder / genuine._shards["train"][0].file
    data = path.read_bytes()
    tried, random = Tried(path), Random(SEED + 3)

    def read():
        shard = Shard(path)
        values = shard.read(0, len(shard))
        return values.nbytes < path.stat().st_size and values.dtype in (np.uint16, np.uint32)

    for _ in range(share_of(10_000)):
        tried(mutated_bytes(data[:128], random) + data[128:], read, True)
    tried.assert_number(share_of(10_000), refused=0.5)


def test_a_damaged_journal_is_discarded(tmp_path):
    shard = {"file": "train-00000.npy"} | write_array(
        tmp_path / "train-00000.npy", np.arange(5, dtype=np.uint16)
    )
    state = {
        "commits": {"": None},
        "position": [0, 3],
        "splits": {"train": {"counts": {"documents": 3}, "shards": [shard]}},
    }
    Journal(tmp_path).commit(state, {"tail-train": np.arange(3, dtype=np.uint16)})
    path = tmp_path / "journal.json"
    data = path.read_bytes()
    value = json.loads(data)
    tried, random = Tried(path), Random(SEED + 4)
    found = Counter()

    def load(expected):
        loaded = Journal(tmp_path).load()
        found["discarded" if loaded is None else "loaded"] += 1
        assert loaded is None or expected is None or loaded[0] == expected
        return True

    for number in range(share_of(4_000)):
        tried(
            mutated_bytes(data, random) if number % 2 else mutated_json(value, random),
            lambda: load(state),
        )
        try:
            forged = json.dumps(sealed(json.loads(mutated_json(value, random)))).encode()
        except (ValueError, TypeError, RecursionError):
            continue
        tried(forged, lambda: load(None))
    assert tried.outcomes.total() >= share_of(7_000)
    assert found["discarded"] > share_of(5_000)
    assert found["loaded"] > share_of(10)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused(genuine, folder, name, capfd):
    path = folder / "tokenizer" / name
    data = path.read_bytes()
    value = json.loads(data)
    tried, random = Tried(path), Random(SEED + 5)

    def read():
        # Without the hash, as it is while text is encoded: all that a text needs is there.
        with contextlib.suppress(DataError):
            tokenizer = load_tokenizer(folder / "tokenizer")
            ids = tokenizer.encode("a text é", add_special_tokens=False).ids
            assert all(type(i) is int for i in [end_of_document_id(path.parent), *ids])
        return PreparedData(folder).tokenizer().get_vocab()

    expected = genuine.tokenizer().get_vocab()
    for number in range(share_of(2_000)):
        damaged = mutated_bytes(data, random) if number % 2 else mutated_json(value, random)
        tried(damaged, read, expected)
    tried(data, read, expected)
    tried.assert_number(share_of(2_000), refused=0.8)
    capfd.readouterr()  # Rust tells its panics on stderr


def test_deep_nesting_is_one_line_in_every_json_file(folder):
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    for name in ("manifest.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(deep)
        with pytest.raises(DataError, match=name.rpartition("/")[2]):
            PreparedData(folder).tokenizer()
        (folder / name).write_bytes(data)
