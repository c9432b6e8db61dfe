"""Perplexity through the cache: that of whole windows, and a bound for narrow caches."""

import pytest
import torch

from measuring.errors import EvaluationError
from measuring.perplexity import score
from measuring.through_cache import CachedScorer
from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.generate import generate
from settings.evaluation import EvalSettings
from tests.tiny_models import scored_model as model


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


@pytest.mark.parametrize("name", ["mha", "mla", "mla_no_rope"])
def test_a_cache_of_float16_that_overflows_says_so_and_wider_ones_hold(name):
    gpt, stream = model(name), Stream(45)
    prompt = torch.from_numpy(stream.window(0, 4))[None]
    greedy = SamplingSettings(temperature=0.0)
    with torch.no_grad():
        for key, weight in gpt.named_parameters():
            if "v_proj" in key or "kv_a_layernorm" in key:
                weight.mul_(1e7)
    whole = score(gpt, stream, context=8, stride=8)
    for dtype in (None, torch.bfloat16, torch.int8):
        found = score(CachedScorer(gpt, dtype), stream, context=8, stride=8)
        assert found.nll == pytest.approx(whole.nll, rel=0.1)
        assert len(list(generate(gpt, prompt, 3, greedy, cache_dtype=dtype))) == 3
    said = r"larger than a float16 cache holds \(65,504\); set {}cache_dtype=bfloat16 or float32"
    with pytest.raises(EvaluationError, match=said.format("eval.")):
        score(CachedScorer(gpt, torch.float16), stream, context=8, stride=8)
    with pytest.raises(ModelConfigError, match=said.format("")):
        list(generate(gpt, prompt, 3, greedy, cache_dtype=torch.float16))
    with torch.no_grad():
        gpt.norm.weight[3] = torch.nan
    with pytest.raises(EvaluationError, match="weights are broken"):
        score(CachedScorer(gpt, torch.float16), stream, context=8, stride=8)


def test_weights_that_overflow_in_float16_alone_are_not_called_broken():
    gpt = model("mha").half()
    with torch.no_grad():
        for key, weight in gpt.named_parameters():
            weight.mul_(3e4 if "v_proj" in key or "o_proj" in key else 1)
    with pytest.raises(EvaluationError, match=r"in float16, which holds .* float32 or bfloat16"):
        score(gpt, Stream(45), context=8, stride=8)


def test_a_cache_dtype_that_nothing_sees_is_refused():
    [problem] = EvalSettings(cache_dtype="int8").problems()
    assert "changes no perplexity" in problem
    assert "eval.decode=true" in problem
    assert EvalSettings(cache_dtype="int8", decode=True).problems() == []
    assert EvalSettings(cache_dtype="int8", perplexity=False).problems() == []
    [problem] = EvalSettings(cache_dtype="int4", decode=True).problems()
    assert "must be null, float32, bfloat16, float16 or int8" in problem
