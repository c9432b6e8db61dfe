"""kvlab's windows, likelihoods and counts are those of lm-evaluation-harness."""

import math

import pytest
import torch
from lm_eval.utils import get_rolling_token_windows

from data.pipeline import prepare
from measuring.perplexity import score, windows
from settings.data import DataSettings, TokenizerSettings
from tests.tiny_models import scored_model as model

# More bytes than characters, and more than one white space between words. At an end that is white
# space the harness counts an empty word, which kvlab does not.
TEXT = """Über den Bächen läuft die Brücke, über die Brücke läuft der Weg.
Ein Weg  führt hinüber,\tein Weg führt zurück; und keiner führt im Kreis.

Wer über die Brücke geht, hört den Bach; wer am Bach geht, hört die Brücke nicht."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus whose validation split is the text above."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train.txt").write_text(TEXT[:100] * 2, encoding="utf-8")
    (folder / "validation.txt").write_text(TEXT, encoding="utf-8")
    data = DataSettings(
        name="brook",
        source="local",
        path=str(folder),
        prepared_dir=str(tmp_path_factory.mktemp("prepared")),
    )
    return prepare(data, TokenizerSettings(name="bpe", kind="bpe", vocab_size=280), lambda _: None)


@pytest.mark.parametrize("num_tokens", [2, 8, 9, 10, 17, 18, 100])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (8, 8), (8, 7), (8, 3), (8, 1)])
def test_windows_equal_those_of_the_harness(num_tokens, context, stride):
    tokens = list(range(num_tokens))
    # The harness says how much context a window keeps, kvlab how many targets it adds.
    kept = context - stride + 1
    theirs = list(get_rolling_token_windows(tokens[1:], tokens[0], context, kept))
    ours = []
    for window in windows(num_tokens, context, stride):
        end = window.start + window.length
        inputs, targets = tokens[window.start : end], tokens[end - window.scored + 1 : end + 1]
        ours.append((inputs, targets))
    assert ours == theirs


def context_that_leaves(what, scored):
    """Return the shortest context, of 8 tokens or more, that cuts so many targets in that way."""
    if what == "one short window":
        return scored + 1
    contexts = range(8, scored)
    return next(c for c in contexts if (scored % c == 0) == (what == "whole windows"))


# Relative: about ten roundings of 2**-24, and hundreds of 2**-53.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("what", ["whole windows", "a partial window", "one short window"])
@pytest.mark.parametrize("name", ["mha", "mla"])
def test_scores_equal_those_of_the_harness(corpus, name, what, dtype, tolerance):
    from tests.harness.hflm import harness_scores  # slow

    stream, counts = corpus.stream("validation"), corpus.splits["validation"]
    first_token, context = int(stream.window(0, 1)[0]), context_that_leaves(what, len(stream) - 1)
    gpt = model(name, vocab_size=corpus.vocab_size, initializer_range=0.5).to(dtype)
    log_likelihood, metrics = harness_scores(
        gpt, corpus.folder / "tokenizer", first_token, TEXT, context
    )
    result = score(gpt, stream, context, stride=context, batch_size=3)
    assert result.nll > 1.2 * math.log(corpus.vocab_size)  # far from uniform
    assert result.nll_sum == pytest.approx(-log_likelihood, rel=tolerance)
    nats_per_word = math.log(result.word_perplexity(counts.words))
    assert nats_per_word == pytest.approx(math.log(metrics["word_perplexity,none"]), rel=tolerance)
    bits_per_byte = result.bits_per_byte(counts.utf8_bytes)
    assert bits_per_byte == pytest.approx(metrics["bits_per_byte,none"], rel=tolerance)
