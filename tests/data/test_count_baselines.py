import math

import numpy as np
import pytest

from data.preparing import count_models
from data.preparing.count_models import CountModel, count_baselines
from data.shards.stream import TokenStream


def stream(tmp_path, name, tokens, vocab_size=3):
    path = tmp_path / f"{name}.npy"
    np.save(path, np.array(tokens, dtype=np.uint16))
    return TokenStream([path], vocab_size)


def test_probabilities_sum_to_one_after_every_token(tmp_path):
    vocab_size = 11
    tokens = np.random.default_rng(0).integers(0, vocab_size - 2, 60)
    model = CountModel.count(stream(tmp_path, "x", tokens, vocab_size), 60, vocab_size)
    assert model.unigram.sum() == pytest.approx(1)
    for previous in range(vocab_size):
        every = np.arange(vocab_size)
        total = model.bigram(np.full(vocab_size, previous), every).sum()
        assert total == pytest.approx(1), previous


def test_perplexities_equal_hand_computed_ones(tmp_path):
    # Training text 0 1 0 0, V = 3: p(0) = 4/7, p(1) = 2/7, p(2) = 1/7.
    # After 0 came 1 and 0 once each (c = 2, T = 2); after 1 came 0 (c = 1, T = 1); after 2 nothing.
    train = stream(tmp_path, "train", [0, 1, 0, 0])
    validation = stream(tmp_path, "validation", [2, 0, 1, 2])
    found = count_baselines(train, validation, 3)
    # Scored are 0, 1, 2: the first token has no context.
    unigram = (4 / 7) * (2 / 7) * (1 / 7)
    bigram = (4 / 7) * ((1 + 2 * 2 / 7) / 4) * ((0 + 1 * 1 / 7) / 2)
    assert found["unigram_perplexity"] == pytest.approx(unigram ** (-1 / 3))
    assert found["bigram_perplexity"] == pytest.approx(bigram ** (-1 / 3))
    assert found["counted_train_tokens"] == 4


def test_chunks_and_cap_change_nothing_else(tmp_path, monkeypatch):
    tokens = np.random.default_rng(1).integers(0, 5, 300)
    train, validation = (
        stream(tmp_path, "train", tokens[:200], 5),
        stream(tmp_path, "validation", tokens[200:], 5),
    )
    whole = count_baselines(train, validation, 5)
    monkeypatch.setattr(count_models, "_CHUNK_TOKENS", 7)
    assert count_baselines(train, validation, 5) == pytest.approx(whole)
    monkeypatch.setattr(count_models, "MAX_COUNTED_TOKENS", 50)
    capped = count_baselines(train, validation, 5)
    assert capped["counted_train_tokens"] == 50
    assert capped == pytest.approx(
        count_baselines(stream(tmp_path, "short", tokens[:50], 5), validation, 5)
    )


def test_training_text_of_one_token_is_scored_by_the_unigram(tmp_path):
    train = stream(tmp_path, "train", [0])
    found = count_baselines(train, stream(tmp_path, "validation", [0, 1]), 3)
    assert found["bigram_perplexity"] == pytest.approx(4)
    assert math.isfinite(found["unigram_perplexity"])
