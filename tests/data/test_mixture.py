import dataclasses

import numpy as np
import pytest
from texts import quiet, sentences, tokens_of

from data.batches import TrainingWindows
from data.errors import DataError
from data.pipeline import prepare, prepared_folder
from data.prepared import PreparedData
from settings.data import DataSettings, TokenizerSettings

BPE = TokenizerSettings(name="bpe", kind="bpe", vocab_size=300)


@pytest.fixture
def mixture(local, tmp_path):
    """Two folders of text files, `digits` and `words`, mixed 1 to 3."""
    texts = {
        "digits": [f"{i} " * (20 + i) for i in range(30)],
        "words": sentences(40),
    }
    corpora = {}
    for name, some in texts.items():
        folder = tmp_path / name
        folder.mkdir()
        for number, text in enumerate(some):
            split = "validation" if number % 10 == 0 else "train"
            (folder / f"{split}-{number:02d}.txt").write_text(text)
        corpora[name] = local(name=name, path=str(folder))
    return DataSettings(
        name="both",
        source="mixture",
        corpora=corpora,
        weights={"digits": 1.0, "words": 3.0},
        prepared_dir=str(tmp_path / "prepared"),
        shard_tokens=600,
    )


def test_each_corpus_keeps_its_splits_and_their_union_is_all_of_them(mixture):
    prepared = prepare(mixture, BPE, quiet)
    decode = prepared.tokenizer().decode
    digits = decode(tokens_of(prepared, "train.digits").tolist())
    words = decode(tokens_of(prepared, "validation.words").tolist())
    assert set(digits) <= set("0123456789 ")
    assert words == "".join(sentences(40)[::10])
    for split in ("train", "validation"):
        parts = [tokens_of(prepared, f"{split}.{name}") for name in ("digits", "words")]
        np.testing.assert_array_equal(tokens_of(prepared, split), np.concatenate(parts))
        counts = [
            dataclasses.astuple(prepared.splits[f"{split}.{name}"]) for name in ("digits", "words")
        ]
        union = tuple(sum(both) for both in zip(*counts, strict=True))
        assert dataclasses.astuple(prepared.splits[split]) == union
    prepared.verify()
    assert prepared.source["corpora"]["words"]["source"] == "local"


def test_training_windows_follow_the_weights(mixture):
    prepared = prepare(mixture, BPE, quiet)
    windows = TrainingWindows(prepared.training_streams(), 8, seed=0)
    inputs, _ = windows.batch(0, 1024)
    decode = prepared.tokenizer().decode
    digits = sum(set(decode(row)) <= set("0123456789 ") for row in inputs.tolist())
    assert abs(digits - 256) < 20  # a few windows of words hold digits alone, too


def test_weights_decide_the_folder_the_data_and_their_fingerprint(mixture):
    first = prepare(mixture, BPE, quiet)
    other = dataclasses.replace(mixture, weights={"digits": 2.0, "words": 3.0})
    assert prepared_folder(other, BPE) != first.folder
    second = prepare(other, TokenizerSettings(name="b", kind="bytes"), quiet)
    third = prepare(mixture, TokenizerSettings(name="b", kind="bytes"), quiet)
    assert second.fingerprint != third.fingerprint
    assert PreparedData(first.folder).weights == mixture.weights


def test_tokenizer_sees_every_corpus(mixture, monkeypatch):
    seen = []

    def note(settings, texts):
        seen.extend(texts)
        raise DataError("seen enough")

    monkeypatch.setattr("data.preparing.preparation.build_tokenizer", note)
    tokenizer = dataclasses.replace(BPE, max_training_bytes=400)
    with pytest.raises(DataError, match="seen enough"):
        prepare(mixture, tokenizer, quiet)
    digits = [text for text in seen if set(text) <= set("0123456789 ")]
    words = [text for text in seen if text not in digits]
    # A quarter and three quarters of 400 bytes, each to the end of a document or of a long piece.
    assert 100 <= sum(map(len, digits)) < 220
    assert 300 <= sum(len(text.encode()) for text in words) < 360


def test_leaks_are_found_across_corpora(mixture, tmp_path):
    text = (tmp_path / "words" / "validation-00.txt").read_text()
    (tmp_path / "digits" / "train-99.txt").write_text(text)
    assert prepare(mixture, BPE, quiet).leaks["train in validation"] == 1


def test_limit_is_each_corpus_own(mixture):
    words = dataclasses.replace(mixture.corpora["words"], max_train_tokens=50)
    whole = prepare(mixture, TokenizerSettings(name="b", kind="bytes"), quiet)
    limited = prepare(
        dataclasses.replace(mixture, corpora=mixture.corpora | {"words": words}),
        TokenizerSettings(name="b", kind="bytes"),
        quiet,
    )
    assert 50 <= limited.splits["train.words"].tokens < 100
    assert limited.splits["train.digits"] == whole.splits["train.digits"]


def test_a_corpus_without_validation_text_is_named(mixture, tmp_path):
    for path in (tmp_path / "words").glob("validation-*"):
        path.rename(path.with_name(path.name.replace("validation", "test")))
    words = dataclasses.replace(mixture.corpora["words"], validation_fraction=1e-9)
    bare = dataclasses.replace(mixture, corpora=mixture.corpora | {"words": words})
    with pytest.raises(DataError, match=r"data\.corpora\.words\.validation_fraction \(1e-09\)"):
        prepare(bare, BPE, quiet)
