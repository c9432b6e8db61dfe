import numpy as np
import pytest
from texts import sentences

from data import documents, inspection
from data.inspection import describe, measure_documents
from data.pipeline import prepare


@pytest.fixture
def prepared(local, byte_level, write_jsonl):
    texts = sentences(30)
    hostile = "\x1b[31mred\x07 \u202eback"
    write_jsonl("train.jsonl", [*texts, texts[3], texts[3], texts[5], hostile * 40, "a"])
    write_jsonl("validation.jsonl", [*sentences(6, start=40), texts[0]])
    return prepare(local(shard_tokens=300), byte_level, lambda _: None)


@pytest.mark.parametrize("chunk", [7, 64, 10**6])
def test_documents_are_measured_across_chunks_and_shards(prepared, monkeypatch, chunk):
    monkeypatch.setattr(documents, "_CHUNK_TOKENS", chunk)
    found = measure_documents(prepared.stream("train"), prepared.end_of_document_id)
    assert len(found.lengths) == prepared.splits["train"].documents
    assert found.lengths.sum() + len(found.lengths) == prepared.splits["train"].tokens
    assert found.lengths[:3].tolist() == [len(text.encode()) for text in sentences(3)]
    assert found.num_repeated == 3


def test_everything_is_said(prepared):
    text = describe(prepared)
    train = prepared.splits["train"]
    for part in (
        str(prepared.folder),
        "test: local",
        f"{train.tokens:,}",
        f"{train.tokens / train.utf8_bytes:.3f}",
        f"{train.tokens / train.words:.3f}",
        "tokens per document, train",
        "longest 680",
        "train: 3 documents repeat an earlier one (8.57%)",
        "validation: 0 documents repeat",
        "train in validation too: 1 (kept)",
        f"unigram {prepared.baselines['unigram_perplexity']:.2f}",
        f"bigram {prepared.baselines['bigram_perplexity']:.2f}",
    ):
        assert part in text, part
    assert "in test" not in text
    assert text.count("train, tokens ") == 3


def test_histogram_counts_every_document_once():
    lengths = np.array([0, 1, 2, 3, 3, 4, 7, 8, 1000])
    lines = inspection._histogram(lengths).splitlines()
    rows = {line[:23].strip(): int(line[23:].split()[0]) for line in lines[:-1]}
    assert rows["0"] == 1
    assert rows["1"] == 1
    assert rows["2 - 3"] == 3
    assert rows["4 - 7"] == 2
    assert rows["8 - 15"] == 1
    assert rows["512 - 1,023"] == 1
    assert sum(rows.values()) == len(lengths)
    assert lines[-1] == "median 3, 90 % at most 206, longest 1,000"
    assert inspection._histogram(lengths[:0]) == "none"


def test_no_text_can_command_a_terminal(prepared):
    assert "\x1b" not in describe(prepared)
