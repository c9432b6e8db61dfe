"""Perplexity through the cache: that of whole windows, and a bound for narrow caches."""

import pytest
import torch
from models import model

from evaluation.perplexity import score
from evaluation.settings import EvalSettings
from evaluation.through_cache import CachedScorer


class Stream:
    """Random tokens."""

    def __init__(self, count, vocab_size=50):
        generator = torch.Generator().manual_seed(2)
        self._tokens = torch.randint(vocab_size, (count,), generator=generator).numpy()

    def __len__(self):
        return len(self._tokens)

    def window(self, start, length):
        return self._tokens[start : start + length]


@pytest.mark.parametrize("name", ["mha", "mqa", "gqa", "mla", "mla_no_rope"])
@pytest.mark.parametrize("stride", [3, 8])
def test_through_the_cache_scores_are_those_of_whole_windows(name, stride):
    gpt, stream = model(name).double(), Stream(45)
    whole, cached = (
        score(scorer, stream, context=8, stride=stride, batch_size=4, end_of_document=7)
        for scorer in (gpt, CachedScorer(gpt))
    )
    assert cached.document_tokens == whole.document_tokens
    assert cached.document_nll == pytest.approx(whole.document_nll, rel=1e-9)
    assert cached.tokens_scored == whole.tokens_scored == 44
    assert cached.window_nll == pytest.approx(whole.window_nll, rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.003), (torch.int8, 0.05)]
)
def test_a_narrow_cache_changes_the_nll_a_little(dtype, bound):
    gpt, stream = model("mla"), Stream(45)
    whole = score(gpt, stream, context=8, stride=8)
    cached = score(CachedScorer(gpt, dtype), stream, context=8, stride=8)
    assert 0 < abs(cached.nll - whole.nll) < bound


def test_a_cache_dtype_that_nothing_sees_is_refused():
    [problem] = EvalSettings(cache_dtype="int8").problems()
    assert "changes no perplexity" in problem
    assert "eval.decode=true" in problem
    assert EvalSettings(cache_dtype="int8", decode=True).problems() == []
    assert EvalSettings(cache_dtype="int8", perplexity=False).problems() == []
    [problem] = EvalSettings(cache_dtype="int4", decode=True).problems()
    assert "must be null or one of float32, bfloat16, float16, int8" in problem
