"""One text in several tokenizers' tokens: bits per byte, with an interval, and nothing else."""

import math
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import comparing.across_tokenizers
from comparing.across_tokenizers import across_tokenizers
from comparing.statistics import text_interval
from comparing.variants import compare
from data.pipeline import prepare
from data.tokenizing.tokenizer import save_tokenizer
from measuring.evaluate import evaluate_run
from measuring.perplexity import Score
from measuring.rows import EvaluatedRun
from reporting.markdown import table as drawn
from reporting.tables import across_table
from settings.data import DataSettings, TokenizerSettings
from settings.evaluation import DecodeSettings, EvalSettings
from tests.measuring.runs import quiet, write_run
from tests.tiny_models import scored_model as model

BYTES = 5000
SIZES = [30, 70] * 50
"""Bytes of each document."""


@pytest.fixture(autouse=True)
def _prepared_text(monkeypatch):
    """What a prepared corpus would say of its documents."""
    monkeypatch.setattr(comparing.across_tokenizers, "_bytes_of", lambda text, split: text)


def card(tokenizer, context=8, **changes):
    found = {
        **{"corpus": "tiny", "revision": "r1", "split": "validation", "context": context},
        **{"stride": context, "tokenizer_sha256": tokenizer * 64, "data_fingerprint": tokenizer},
        **{"tokens": 100 * context + 1, "words": 1000, "utf8_bytes": BYTES},
    }
    return found | changes


def scored(name, protocol, nats, seed=None, windows=100):
    """A run, or an external model, that needs so many nats per token, more or less."""
    context = protocol["context"]
    rates = nats + 0.1 * np.random.default_rng([seed or 0, context]).normal(size=windows)
    each = (context * rates).tolist(), [context] * windows  # a window is a document
    score = Score(float(context * rates.sum()), windows * context, *each, *each)
    row = {
        **{"run_name": name, "attention": "hf:llama" if seed is None else "mha", "seed": seed},
        "split": "validation",
        **{"positions": "RoPE", "num_parameters": 1000, "tokens_trained": None, "tokens": 1},
        **{"tokens_scored": score.tokens_scored, "nll": score.nll, "perplexity": score.perplexity},
        **{"word_perplexity": 9.0, "bits_per_byte": score.bits_per_byte(BYTES)},
        **{"kv_cache_bytes_per_token": None, "kv_cache_bytes_measured": 512.0},
        **dict.fromkeys(("train_tokens_per_second", "train_peak_memory_bytes")),
        **{"train_wall_seconds": None, "cache_ratio_to_mha": None, "protocol": protocol},
    }
    config = None if seed is None else model("mha").config
    curve = {"tokens": [], "perplexity": []}
    return EvaluatedRun(row, config, score, {}, curve, None, prepared=SIZES[:windows])


def test_variants_of_several_tokenizers_share_a_table_of_bits_per_byte():
    runs = [scored("a", card("a"), 3.0, 0), scored("b", card("a"), 3.0, 1)]
    other = scored("hf:other", card("b", 16), 1.0)
    (found,) = across_tokenizers(compare([*runs, other], None))
    assert (found["corpus"], found["utf8_bytes"], found["words"]) == ("tiny", BYTES, 1000)
    first, second = found["variants"]  # the lowest first
    assert (first["name"], first["context"], first["seeds"]) == ("hf:other", 16, [])
    assert (second["name"], second["tokenizer_sha256"], second["seeds"]) == (
        "mha",
        "a" * 64,
        [0, 1],
    )
    assert second["bits_per_byte"] == pytest.approx(
        sum(run.windows.nll_sum for run in runs) / 2 / math.log(2) / BYTES
    )
    bits = {
        row["name"]: np.mean([run.windows.document_nll for run in its], axis=0) / math.log(2)
        for row, its in ((first, [other]), (second, runs))
    }
    for row in (first, second):
        low, high = row["bits_per_byte_ci95_text"]
        # Of a text's bytes, whatever the tokens.
        assert (low, high) == pytest.approx(text_interval(bits[row["name"]], SIZES))
        assert low < row["bits_per_byte"] < high
    assert first["delta_bits_per_byte"] is None
    delta = bits["mha"] - bits["hf:other"]
    assert second["delta_bits_per_byte"] == pytest.approx(delta.sum() / BYTES)
    expected = text_interval(delta, SIZES)
    assert second["delta_bits_per_byte_ci95_text"] == pytest.approx(expected)
    shown = drawn(across_table(found["variants"]))
    assert f"{first['bits_per_byte']:.4f}" in shown
    assert "perplexity" not in shown
    assert not {"perplexity", "nll"} & set(first)


@pytest.mark.parametrize(
    "other",
    [
        card("a", 16),  # other windows of the same tokens
        card("b", utf8_bytes=BYTES + 1),  # another text
        card("b", revision="r2"),
        card("b", split="test"),
    ],
)
def test_one_tokenizer_or_several_texts_need_no_such_table(other):
    groups = compare([scored("a", card("a"), 3.0, 0), scored("hf:o", other, 1.0)], None)
    assert len(groups) == 2
    assert across_tokenizers(groups) == []


def test_a_text_too_short_for_an_interval_has_none():
    runs = [scored("a", card(name), 3.0, windows=5) for name in "ab"]
    (found,) = across_tokenizers(compare(runs, None))
    assert [row["bits_per_byte_ci95_text"] for row in found["variants"]] == [None, None]
    assert "95 %" not in drawn(across_table(found["variants"]))


def test_a_model_that_does_not_read_the_whole_text_is_compared_with_none():
    run, third = scored("a", card("a"), 3.0, 0), scored("hf:third", card("c"), 2.0)
    lossy = scored("hf:lossy", card("b", 16), 1.0)
    lossy.row["reads_whole_text"] = False
    assert across_tokenizers(compare([run, lossy], None)) == []
    (found,) = across_tokenizers(compare([run, lossy, third], None))
    assert [row["name"] for row in found["variants"]] == ["hf:third", "mha"]


def test_a_run_whose_tokenizer_loses_text_is_left_out_by_name(corpus_folder, tmp_path):
    words = ["<unk>", "<eos>", "return", "x", *(f"w{number}" for number in range(296))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(tokenizer, "<eos>", tmp_path / "words")
    data = DataSettings("tiny", "local", str(corpus_folder), prepared_dir=str(tmp_path / "out"))
    choice = TokenizerSettings("words", "pretrained", path=str(tmp_path / "words"))
    run = write_run(tmp_path / "runs", prepare(data, choice, quiet))
    settings = EvalSettings(decode_speed=DecodeSettings(batch_sizes=[]))
    found = evaluate_run(run, "validation", settings, torch.device("cpu"), quiet)
    assert found.row["reads_whole_text"] is False
    assert re.match(
        r"run: .* not give back [0-9.]+ % of the bytes .*left out of Across", found.notes[-1]
    )
