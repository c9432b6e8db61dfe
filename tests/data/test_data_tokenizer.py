import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import sentences

from data.errors import DataError
from data.tokenizing.pretrained import build_tokenizer
from data.tokenizing.tokenizer import (
    END_OF_TEXT,
    bytes_tokenizer,
    cut_long_runs,
    end_of_document_id,
    load_tokenizer,
    save_tokenizer,
    split_long,
    train_bpe,
    vocab_size_of,
)
from settings.data import TokenizerSettings

BPE = TokenizerSettings(name="bpe", kind="bpe", vocab_size=300)
# Every string that UTF-8 can hold, with runs of spaces and special tokens more often than chance.
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(
            [" ", "   ", "  \n", "\n\n", "\r\n", "\x1c ", "\u2028", "a b", END_OF_TEXT, "'s"]
        ),
    )
).map("".join)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    # Indented, so that runs of spaces and newlines merge and a wrong cut inside one shows.
    texts = [*sentences(200), *["a\n\n\n      b\n   c"] * 50]
    built = train_bpe(texts, BPE) if request.param == "bpe" else bytes_tokenizer()
    save_tokenizer(built, END_OF_TEXT, folder)
    return folder


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_any_text_round_trips_without_special_tokens(saved, text):
    tokenizer = load_tokenizer(saved)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert end_of_document_id(saved) not in ids


@settings(max_examples=300, deadline=None)
@given(text=TEXT, size=st.integers(1, 8))
def test_pieces_of_a_long_text_give_the_tokens_of_the_whole(saved, text, size):
    tokenizer = load_tokenizer(saved)
    pieces = list(split_long(text, size))
    assert "".join(pieces) == text
    ids = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_byte_tokenizer_has_one_token_per_byte():
    tokenizer = bytes_tokenizer()
    assert vocab_size_of(tokenizer) == 257
    assert len(tokenizer.encode("aé\U0001f600", add_special_tokens=False).ids) == 1 + 2 + 4


def test_bpe_is_deterministic_and_end_of_text_is_id_zero():
    first, second = (train_bpe(sentences(200), BPE) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert first.token_to_id(END_OF_TEXT) == 0
    assert vocab_size_of(first) == 300


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["x", " ", "\n", "é1", "a b "]), st.integers(0, 1600)))
)
def test_a_long_run_is_cut_for_training_and_nothing_else_is(parts):
    text = "".join(part * number for part, number in parts)
    pieces = list(cut_long_runs([text]))
    assert "".join(pieces) == text
    runs = [run for piece in pieces for run in re.findall(r"\S+|\s+", piece)]
    assert max(map(len, runs), default=0) <= 512
    if max(map(len, re.findall(r"\S+|\s+", text)), default=0) <= 512:
        assert pieces == [text]


@pytest.mark.parametrize("text", ["ACGTTGCA" * 20_000, "\u4e00\u4e8c\u4e09" * 9000, " " * 100_000])
def test_a_text_of_one_word_is_trained_on_and_round_trips(text):
    # Minutes where the word is left whole.
    tokenizer = train_bpe([text], BPE)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bpe_reads_no_more_than_its_limit():
    taken = []

    def texts():
        for text in sentences(100):
            taken.append(text)
            yield text

    train_bpe(texts(), TokenizerSettings(name="x", kind="bpe", max_training_bytes=50))
    assert len(taken) < 10


@pytest.mark.slow
def test_transformers_opens_the_folder_and_agrees(saved):
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(saved)
    tokenizer = load_tokenizer(saved)
    assert opened.eos_token_id == end_of_document_id(saved)
    for text in (" a , b . don't\n\n x  ", "é\U0001f600\t", *sentences(3)):
        ids = opened.encode(text)
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert opened.decode(ids) == text


@pytest.mark.slow
def test_pretrained_folder_is_loaded_without_its_added_tokens(saved, tmp_path):
    from tokenizers import processors

    wrapped = load_tokenizer(saved)
    wrapped.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    save_tokenizer(wrapped, END_OF_TEXT, tmp_path / "source")
    choice = TokenizerSettings(name="p", kind="pretrained", path=str(tmp_path / "source"))
    built = build_tokenizer(choice, [])
    assert built.commit is None
    save_tokenizer(built.tokenizer, built.end_of_document, tmp_path / "copy")
    assert end_of_document_id(tmp_path / "copy") == 0
    assert load_tokenizer(tmp_path / "copy").encode("a b").ids == (
        load_tokenizer(saved).encode("a b").ids
    )


@pytest.mark.slow
def test_pretrained_without_eos_token_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(bytes_tokenizer().to_str())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    choice = TokenizerSettings(name="p", kind="pretrained", path=str(tmp_path))
    with pytest.raises(DataError, match="no eos_token"):
        build_tokenizer(choice, [])


def test_pretrained_path_typo_is_refused_without_network():
    choice = TokenizerSettings(name="p", kind="pretrained", path="./nosuchfolder")
    with pytest.raises(DataError, match=r"no such folder: \./nosuchfolder"):
        build_tokenizer(choice, [])


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
