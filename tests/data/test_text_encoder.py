from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_data_tokenizer import TEXT
from texts import sentences
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from data.errors import DataError
from data.sources.corpus import Document
from data.tokenizing import encoding
from data.tokenizing.encoding import (
    BatchEncoder,
    TextEncoder,
    digest,
    encode_in_order,
    encodes_piece_by_piece,
)
from data.tokenizing.tokenizer import (
    END_OF_TEXT,
    bytes_tokenizer,
    load_tokenizer,
    save_tokenizer,
    split_long,
    train_bpe,
)
from settings.data import TokenizerSettings

BPE = TokenizerSettings(name="bpe", kind="bpe", vocab_size=330)
ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
# Whatever one side may call a space, letter or number and the other not.
ODD = st.text(
    st.sampled_from(
        " \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u2028\u200b\u3000"
        "aé'sł\u0661\u0662²Ⅷ5!…\u0301\U0001f600\ufeff"
    ),
    max_size=24,
)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    texts = [*sentences(200), *["a\n\n\n      b\n   c isn't 'll 123"] * 50]
    # Merges that a cut in a wrong place would prevent.
    texts += ["é!\x1c\x1d? !\x1c\x1d? \x1c!"] * 50
    built = train_bpe(texts, BPE) if request.param == "bpe" else bytes_tokenizer()
    save_tokenizer(built, END_OF_TEXT, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    """One for all examples, so that what it remembers is used."""
    return TextEncoder(load_tokenizer(folder), np.dtype(np.uint16))


@settings(max_examples=500, deadline=None)
@given(text=st.one_of(TEXT, ASCII, ODD))
@example(text="a\x1cb !\x1c\x1d? \x1d\x1e x")
@example(text="é !\x1c\x1d? é!\x1c\x1d?")
@example(text="  x\x85 y \x85z")
@example(text=f"a{END_OF_TEXT}b {END_OF_TEXT}")
def test_ids_are_those_of_the_tokenizer(folder, encoder, text):
    assert encoder.remembers
    expected = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    assert np.frombuffer(encoder.encode(text), np.uint16).tolist() == expected


def test_a_long_text_is_encoded_in_pieces(folder, encoder, monkeypatch):
    pieces = []
    encode_piece = TextEncoder._encode_piece
    monkeypatch.setattr(
        TextEncoder, "_encode_piece", lambda self, t: pieces.append(t) or encode_piece(self, t)
    )
    monkeypatch.setattr(encoding, "split_long", partial(split_long, max_characters=2000))
    text = "\n  ".join(sentences(1000))
    expected = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    assert np.array_equal(np.frombuffer(encoder.encode(text), np.uint16), expected)
    assert max(map(len, pieces)) < 2100
    assert len(pieces) > 5


def test_forgetting_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(encoding, "_MAX_REMEMBERED", 3)
    monkeypatch.setattr(encoding, "_MAX_REMEMBERED_LENGTH", 4)
    tokenizer = load_tokenizer(folder)
    forgetful = TextEncoder(tokenizer, np.dtype(np.uint16))
    for text in sentences(50):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert np.frombuffer(forgetful.encode(text), np.uint16).tolist() == ids
        assert len(forgetful._ids_of) <= 3
        assert max(map(len, forgetful._ids_of)) <= 4


def other(change):
    tokenizer = bytes_tokenizer()
    change(tokenizer)
    return tokenizer


def set_pre_tokenizer(tokenizer):
    split = pre_tokenizers.Split(Regex(r"\d{1,3}|\D+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])


OTHERS = {
    "another pattern": set_pre_tokenizer,
    "prefix space": lambda t: setattr(
        t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "normalizer": lambda t: setattr(t, "normalizer", normalizers.NFC()),
    "token that is found in text": lambda t: t.add_tokens([AddedToken("a b")]),
    "dropout": lambda t: setattr(t.model, "dropout", 0.5),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tokenizers_are_called_for_the_whole_text(kind):
    tokenizer = other(OTHERS[kind])
    assert not encodes_piece_by_piece(tokenizer)
    if kind == "dropout":
        return
    encoder = TextEncoder(tokenizer, np.dtype(np.uint32))
    for text in ("a b  c 1234 a b", "e\u0301x"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert np.frombuffer(encoder.encode(text), np.uint32).tolist() == ids


def test_gpt2s_own_tokenizer_file_is_recognised():
    # The fields of openai-community/gpt2's tokenizer.json but for vocabulary and merges.
    gpt2 = """{"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 0, "special": true, "content": "<|endoftext|>", "single_word": false,
    "lstrip": false, "rstrip": false, "normalized": true}], "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
    "end_of_word_suffix": "", "fuse_unk": false, "vocab": {"<|endoftext|>": 0, "a": 1},
    "merges": []}}"""
    assert encodes_piece_by_piece(Tokenizer.from_str(gpt2))


def test_batch_is_counted_and_every_document_ends_in_its_token(folder):
    texts = ["a b\n\nc", "é\n", "x"]
    encoded = BatchEncoder(folder)([Document(text, "") for text in texts])
    documents = np.split(encoded.tokens, np.cumsum(encoded.lengths))[:-1]
    tokenizer = load_tokenizer(folder)
    assert [d[-1] for d in documents] == [0, 0, 0]
    assert [tokenizer.decode(d[:-1].tolist()) for d in documents] == texts
    assert encoded.utf8_bytes.tolist() == [6, 3, 1]
    assert encoded.words.tolist() == [3, 1, 1]
    assert encoded.lines.tolist() == [3, 1, 1]
    assert encoded.digests.tolist() == [digest(text.encode()) for text in texts]
    with pytest.raises(DataError, match="row 2: character 2 is half of a surrogate pair"):
        BatchEncoder(folder)([Document("a", "row 1"), Document("bc\udc80", "row 2")])


def test_results_come_in_order_and_reading_is_never_far_ahead(folder):
    read = []

    def batches():
        for number in range(40):
            read.append(number)
            yield [Document(f"text {number}", "")] * (1 + 50 * (number % 3))

    tokenizer = load_tokenizer(folder)
    for number, (batch, encoded) in enumerate(encode_in_order(batches(), folder, 2)):
        assert len(batch) == len(encoded.lengths)
        document = encoded.tokens[: encoded.lengths[0] - 1]
        assert tokenizer.decode(document.tolist()) == f"text {number}"
        assert len(read) <= number + 4
    assert number == 39


def test_small_corpus_starts_no_process(folder, monkeypatch):
    monkeypatch.setattr("loky.ProcessPoolExecutor", lambda *_, **__: pytest.fail("started"))
    assert len(list(encode_in_order([[Document("a", "")]], folder, 8))) == 1
    assert list(encode_in_order([], folder, 8)) == []
