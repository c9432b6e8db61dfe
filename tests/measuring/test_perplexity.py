import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from measuring.errors import EvaluationError
from measuring.perplexity import Window, score, windows
from tests.tiny_models import tiny_model


class Stream:
    def __init__(self, tokens):
        self.tokens = np.asarray(tokens, dtype=np.int64)

    def __len__(self):
        return len(self.tokens)

    def window(self, start, length):
        assert start >= 0
        assert start + length <= len(self.tokens)
        return self.tokens[start : start + length]


class Uniform:
    """Gives every token the same likelihood."""

    def __init__(self, vocab_size):
        self.logits = torch.zeros(vocab_size)

    def token_nll(self, tokens, targets):
        return torch.nn.functional.cross_entropy(
            self.logits.expand(targets.numel(), -1), targets.flatten(), reduction="none"
        ).view_as(targets)


class LastToken:
    """A bigram model: the NLL of y after x is |x - y| + 1, known in closed form."""

    def token_nll(self, tokens, targets):
        return (tokens - targets).abs().float() + 1.0


class AddOneCounts:
    """Three tokens, counted in TEXT: p = (count + 1) / (count of the context + 3).

    The context is the two tokens before, or the one where a window begins.
    """

    TEXT = (0, 1, 0, 1, 2, 0, 1)

    def probability(self, before, token):
        n = len(before)
        follow = [self.TEXT[i] for i in range(n, len(self.TEXT)) if self.TEXT[i - n : i] == before]
        return Fraction(follow.count(token) + 1, len(follow) + 3)

    def token_nll(self, tokens, targets):
        nll = torch.empty(targets.shape, dtype=torch.float64)
        for row, i in np.ndindex(*targets.shape):
            before = tuple(tokens[row, max(0, i - 1) : i + 1].tolist())
            nll[row, i] = -math.log(self.probability(before, int(targets[row, i])))
        return nll


@pytest.fixture
def gpt():
    given = {"max_position_embeddings": 8, "num_hidden_layers": 2, "initializer_range": 0.4}
    return tiny_model("mha", vocab_size=11, **given)


def test_disjoint_windows_are_those_written_by_hand():
    assert list(windows(10, context=4, stride=4)) == [
        Window(start=0, length=4, scored=4),
        Window(start=4, length=4, scored=4),
        Window(start=5, length=4, scored=1),
    ]


def test_strided_windows_are_those_written_by_hand():
    assert list(windows(9, context=4, stride=2)) == [
        Window(start=0, length=4, scored=4),
        Window(start=2, length=4, scored=2),
        Window(start=4, length=4, scored=2),
    ]
    assert list(windows(3, context=8, stride=8)) == [Window(start=0, length=2, scored=2)]


@pytest.mark.parametrize("num_tokens", [2, 3, 7, 8, 9, 10, 63, 100])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 1), (4, 3), (4, 4), (9, 5), (200, 7)])
def test_every_token_but_the_first_is_scored_once(num_tokens, context, stride):
    seen = []
    for window in windows(num_tokens, context, stride):
        last_target = window.start + window.length
        seen += range(last_target - window.scored + 1, last_target + 1)
        assert window.length <= context
    assert seen == list(range(1, num_tokens))


@pytest.mark.parametrize("vocab_size", [2, 300, 4096])
def test_uniform_logits_give_exactly_the_vocabulary(vocab_size):
    stream = Stream(np.arange(1001) % vocab_size)
    assert score(Uniform(vocab_size), stream, 64, 64).perplexity == pytest.approx(
        vocab_size, rel=1e-6
    )


def test_a_model_known_in_closed_form():
    tokens = np.random.default_rng(0).integers(0, 9, 137)
    expected = float((np.abs(np.diff(tokens)) + 1).sum())
    for context, stride in ((5, 5), (5, 2), (64, 64)):
        result = score(LastToken(), Stream(tokens), context, stride, batch_size=3)
        assert result.nll_sum == expected
        assert result.tokens_scored == 136
        assert result.perplexity == pytest.approx(math.exp(expected / 136))
        assert result.word_perplexity(50) == pytest.approx(math.exp(expected / 50))
        assert result.word_perplexity(0) is None
        assert result.bits_per_byte(700) == pytest.approx(expected / math.log(2) / 700)
        assert sum(result.window_tokens) == 136
        assert math.fsum(result.window_nll) == result.nll_sum


END = 9


@pytest.mark.parametrize(
    ("tokens", "expected"),  # nats by document: |x - y| + 1 for every token but the first
    [
        ([3, 3, END, 4, END, 9 - 8, 2], [(1 + 7, 2), (6 + 6, 2), (9 + 2, 2)]),
        ([3, END, 8, 8, 8, END], [(7, 1), (2 + 1 + 1 + 2, 4)]),
        ([END, 8, END, END], [(0, 0), (2 + 2, 2), (1, 1)]),  # documents without any text
        ([1, 2, 3, 4, 5, 6], [(10, 5)]),
    ],
)
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (3, 3), (3, 2), (64, 64)])
def test_every_token_is_of_one_document_and_the_last_one_ends_it(tokens, expected, context, stride):
    result = score(LastToken(), Stream(tokens), context, stride, batch_size=2, end_of_document=END)
    assert list(zip(result.document_nll, result.document_tokens, strict=True)) == expected
    whole = score(LastToken(), Stream(tokens), context, stride)
    assert (whole.document_nll, whole.document_tokens) == ([whole.nll_sum], [len(tokens) - 1])


# p(1|0) p(0|.) p(0|.) p(1|.) p(2|.), counted by hand; a longer context is "01", "10", "00", "01".
@pytest.mark.parametrize(
    ("context", "stride", "factors"),
    [
        (1, 1, "4/6 2/5 1/6 4/6 2/5"),
        (2, 2, "4/6 2/5 1/6 1/3 2/5"),
        (2, 1, "4/6 2/5 1/4 1/3 2/5"),
        (5, 5, "4/6 2/5 1/4 1/3 2/5"),
    ],
)
def test_an_n_gram_model_counted_by_hand(context, stride, factors):
    likelihood = math.prod(Fraction(factor) for factor in factors.split())
    result = score(AddOneCounts(), Stream([0, 1, 0, 0, 1, 2]), context, stride)
    assert result.perplexity == pytest.approx(float(1 / likelihood) ** (1 / 5), rel=1e-14)
    assert result.word_perplexity(2) == pytest.approx(float(1 / likelihood) ** (1 / 2), rel=1e-14)
    assert result.bits_per_byte(3) == pytest.approx(math.log2(1 / likelihood) / 3, rel=1e-14)


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (5, 1)])
def test_scores_equal_those_token_by_token(gpt, context, stride):
    tokens = np.random.default_rng(1).integers(0, 11, 47)
    total = 0.0
    for window in windows(47, context, stride):
        row = torch.from_numpy(tokens[window.start : window.start + window.length + 1])
        for scored in range(window.length - window.scored, window.length):
            logits = gpt(row[None, : scored + 1])[0, -1].detach().double()
            total -= float(logits.log_softmax(-1)[row[scored + 1]])
    result = score(gpt, Stream(tokens), context, stride)
    assert result.nll_sum == pytest.approx(total, rel=1e-6)


def test_the_batch_size_does_not_change_the_score(gpt):
    stream = Stream(np.random.default_rng(2).integers(0, 11, 100))
    scores = [score(gpt, stream, 8, 5, batch_size=size).nll_sum for size in (1, 3, 8, 64)]
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-6)


def test_more_context_is_what_a_smaller_stride_gives(gpt):
    stream = Stream(np.random.default_rng(3).integers(0, 11, 60))
    assert score(gpt, stream, 8, 8).nll_sum != score(gpt, stream, 8, 1).nll_sum


def test_a_look_at_the_first_tokens_only():
    result = score(LastToken(), Stream(np.arange(50)), 8, 8, max_tokens=20)
    assert result.tokens_scored == 19


def test_a_word_perplexity_beyond_a_float_is_none():
    assert score(LastToken(), Stream(np.arange(1000) % 2), 8, 8).word_perplexity(1) is None


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_split_with_nothing_to_score_is_refused(num_tokens):
    with pytest.raises(EvaluationError, match=rf"{num_tokens} tokens has nothing to score"):
        score(LastToken(), Stream(np.zeros(num_tokens)), 8, 8)


def test_likelihoods_that_are_no_numbers_are_refused(gpt):
    with torch.no_grad():
        gpt.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(EvaluationError, match="not finite"):
        score(gpt, Stream(np.arange(20) % 11), 8, 8)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_outside_its_range_is_refused(stride):
    with pytest.raises(EvaluationError, match=r"eval\.stride"):
        score(LastToken(), Stream(np.arange(20)), 8, stride)
