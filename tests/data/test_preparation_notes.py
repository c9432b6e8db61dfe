"""What a preparation says of its text: splits that came out wrong, empty rows, lost bytes."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import sentences
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.errors import DataError
from data.pipeline import prepare, prepared_folder
from data.shards.manifest import share_of
from data.splits import TRAIN, split_by_hash
from data.tokenizing.round_trip import LostBytes, gives_back_all
from data.tokenizing.tokenizer import bytes_tokenizer, save_tokenizer
from settings.data import TokenizerSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines():
    return []


def test_a_split_far_from_what_was_asked_is_named(local, byte_level, tmp_path, lines):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("word " * 10 ** (number % 3 + 1) + str(number))
    prepare(local(validation_fraction=0.5), byte_level, lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: validation is")]
    assert "of 6 documents" in warning
    assert "asks for 50.0%; an interval needs at least 10 documents" in warning
    assert "data.document_start" in warning


def test_a_split_as_it_was_asked_for_is_not_named(local, byte_level, write_jsonl, lines):
    write_jsonl("a.jsonl", sentences(200))
    prepare(local(), byte_level, lines.append)
    assert not [line for line in lines if "warning" in line]


def test_of_many_documents_a_larger_share_is_advised(local, byte_level, write_jsonl, lines):
    write_jsonl("a.jsonl", [f"row {number:03d}" for number in range(150)])
    prepare(local(validation_fraction=0.04), byte_level, lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: validation is")]
    assert warning.endswith("an interval needs at least 10 documents: raise it to 0.13")


def test_few_documents_are_not_advised_to_raise_the_fraction(local, byte_level, write_jsonl):
    write_jsonl("a.jsonl", ["one", "two", "three"])
    with pytest.raises(DataError, match=r"of 3 documents left none for validation: split long"):
        prepare(local(validation_fraction=0.001), byte_level, lambda _: None)
    limited = r"left none for validation: raise data\.max_train_tokens \(1\), split long"
    with pytest.raises(DataError, match=limited):
        prepare(local(validation_fraction=0.001, max_train_tokens=1), byte_level, lambda _: None)
    never = local(validation_fraction=0.001, document_start="never")
    with pytest.raises(DataError, match=r"of 1 document .*: let data\.document_start \('never'\)"):
        prepare(never, byte_level, lambda _: None)
    # The only one may be held out, too.
    alone = next(text for text in map(str, range(99)) if split_by_hash(text.encode(), 0.5) != TRAIN)
    write_jsonl("a.jsonl", [alone])
    with pytest.raises(DataError, match=r"of 1 document left none for training: split long"):
        prepare(local(validation_fraction=0.5), byte_level, lambda _: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_empty_rows_and_files_are_counted(local, byte_level, write_jsonl, lines, workers):
    write_jsonl("train.jsonl", ["", *sentences(30), "", ""])
    folder = write_jsonl("validation.jsonl", sentences(10, start=50)).parent
    (folder / "x.txt").write_text("")
    (folder / "y.txt.gz").write_bytes(gzip.compress(b""))
    prepare(local(num_workers=workers), byte_level, lines.append)
    assert any(line.startswith("1 empty file in ") and line.endswith(": x.txt") for line in lines)
    assert "5 empty rows or files are left out: no text in them" in lines


def test_a_left_over_preparation_is_named_once(local, byte_level, write_jsonl, lines):
    write_jsonl("train.jsonl", sentences(60))
    left = prepared_folder(local(shard_tokens=7), byte_level)
    left = left.with_name(left.name + ".partial")
    left.mkdir(parents=True)
    for number in range(3):
        prepare(local(shard_tokens=500 + number), byte_level, lines.append)
    assert sum("was left by other settings" in line for line in lines) == 1
    # Of later remains the next one speaks again.
    later = time.time() + 60  # a file system's clock ticks slowly
    os.utime(left, (later, later))
    prepare(local(shard_tokens=600), byte_level, lines.append)
    assert sum("was left by other settings" in line for line in lines) == 2


def word_level(words, unknown="<unk>"):
    vocab = {word: number for number, word in enumerate([unknown, "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def lower_case():
    tokenizer = bytes_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def without_a_byte():
    described = json.loads(bytes_tokenizer().to_str())
    del described["model"]["vocab"]["z"]
    return Tokenizer.from_str(json.dumps(described))


def with_a_space_before():
    tokenizer = bytes_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def one_that_strips():
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens([AddedToken("b", lstrip=True)])
    return tokenizer


def pieces():
    vocab = [("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0), ("b", -2.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (word_level(["a", "b"]), "a b a", 0),
        (word_level(["a", "b"]), "a\nb", 2),  # a newline missing, a space new
        (word_level(["a", "b"]), "a \u00e9\u00e9\u00e9 b", 7),  # by hand: 6 bytes and a space
        (lower_case(), "Ab", 2),  # a capital missing, a small letter new
        (without_a_byte(), "zazb", 2),
        (with_a_space_before(), "ab", 0),
        (one_that_strips(), "a   b", 3),
        (pieces(), "ab ba", 0),
        (pieces(), "ab\u00e9", 2),
    ],
)
def test_lost_bytes_are_counted(tokenizer, text, lost):
    assert not gives_back_all(tokenizer)
    assert LostBytes(tokenizer).of(text) == lost


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_of_a_byte_level_tokenizer_with_all_bytes_nothing_is_lost(text):
    tokenizer = bytes_tokenizer()
    assert gives_back_all(tokenizer)
    assert LostBytes(tokenizer).of(text) == 0


@pytest.fixture
def lossy(tmp_path, local, write_jsonl, lines):
    save_tokenizer(word_level(["alpha", "beta"]), "<eos>", tmp_path / "lossy")
    write_jsonl("train.jsonl", sentences(40))
    write_jsonl("validation.jsonl", sentences(20, start=40))
    choice = TokenizerSettings(name="words", kind="pretrained", path=str(tmp_path / "lossy"))
    return prepare(local(), choice, lines.append)


def test_what_a_tokenizer_loses_is_said_and_stored(lossy, lines):
    counts = lossy.splits["validation"]
    assert 0.5 < counts.lost_bytes / counts.utf8_bytes <= 1
    share = share_of(counts.lost_bytes, counts.utf8_bytes)
    warnings = [line for line in lines if line.startswith("warning: tokenizer words does not")]
    assert len(warnings) == 2
    assert f"{share} of the bytes of validation" in warnings[1]
    manifest = json.loads((lossy.folder / "manifest.json").read_text())
    assert manifest["splits"]["validation"]["lost_bytes"] == counts.lost_bytes
