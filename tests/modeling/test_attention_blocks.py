"""Attention through a window against one query and one key at a time, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import normal
from torch.utils.checkpoint import checkpoint

from modeling.attention import blocks
from modeling.attention.blocks import attend_windowed

B, H, D, V = 2, 4, 5, 3
SCALE = 0.4
T = 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)


def inputs(g, s, t, *, dtype=torch.float64, requires_grad=False):
    """Query, key, value and sink."""
    shapes = ((B, H, s, D), (B, g, t, D), (B, g, t, V), (H,))
    made = (normal(*shape, dtype=torch.float64, seed=n) for n, shape in enumerate(shapes))
    return [x.to(dtype).requires_grad_(requires_grad) for x in made]


def masks(kind, s, t):
    if kind is None:
        return None
    if kind == "padded":  # on the left of one, on the right of the other
        position = torch.arange(t)
        return torch.stack((position >= t // 2, position < t - 2))
    mask = torch.rand(B, s, t, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[0, s // 2] = False  # a query that sees nothing
    return mask


def one_at_a_time(query, key, value, window, sink, mask):
    (b, h, s, _), (g, t) = query.shape, key.shape[1:3]
    output = torch.zeros(b, h, s, value.shape[-1], dtype=torch.float64)
    for n, head, i in itertools.product(range(b), range(h), range(s)):
        position, total, found = t - s + i, 0.0, torch.zeros(value.shape[-1], dtype=torch.float64)
        if sink is not None:
            total = math.exp(sink[head])
        for j in range(t):
            seen = j <= position and (window is None or j > position - window)
            if mask is not None:
                seen = seen and bool(mask[n, j] if mask.dim() == 2 else mask[n, i, j])
            if seen:
                score = (query[n, head, i].double() @ key[n, head // (h // g), j].double()) * SCALE
                total += math.exp(score)
                found += math.exp(score) * value[n, head // (h // g), j].double()
        output[n, head, i] = found / total if total else found
    return output


def plainly(query, key, value, window, sink, mask):
    """The same by whole products, for autograd."""
    (h, s), (g, t) = query.shape[1:3], key.shape[1:3]
    key, value = key.repeat_interleave(h // g, 1), value.repeat_interleave(h // g, 1)
    distance = torch.arange(t - s, t)[:, None] - torch.arange(t)
    seen = ((distance >= 0) & (distance < (window or t)))[None, None]
    if mask is not None:
        seen = seen & (mask[:, None, None] if mask.dim() == 2 else mask[:, None])
    scores = (query @ key.transpose(2, 3) * SCALE).masked_fill(~seen, -1e300)
    if sink is not None:
        scores = torch.cat((sink.view(1, -1, 1, 1).expand(len(query), -1, s, 1), scores), -1)
    return scores.softmax(-1)[..., -t:].mul(seen) @ value


WINDOWS = (1, 3, 6, T, T + 5, None)
SHAPES = [(4, T, T), (2, 5, T), (1, 8, 8), (2, 1, T)]  # g, s, t


@pytest.mark.parametrize("mask", [None, "padded", "by query"])
@pytest.mark.parametrize("has_sink", [False, True])
@pytest.mark.parametrize(("g", "s", "t"), SHAPES)
def test_windowed_attention_equals_one_query_and_key_at_a_time(g, s, t, has_sink, mask):
    query, key, value, sink = inputs(g, s, t)
    mask, sink = masks(mask, s, t), sink if has_sink else None
    for window in WINDOWS:
        found = attend_windowed(
            query, key, value, scale=SCALE, window=window, sink=sink, attention_mask=mask
        )
        torch.testing.assert_close(found, one_at_a_time(query, key, value, window, sink, mask))


@pytest.mark.parametrize("mask", [None, "padded", "by query"])
@pytest.mark.parametrize("has_sink", [False, True])
@pytest.mark.parametrize(("g", "s", "t"), SHAPES)
def test_windowed_attention_gradients_equal_those_of_whole_products(g, s, t, has_sink, mask):
    mask = masks(mask, s, t)
    weighting = normal(B, H, s, V, dtype=torch.float64, seed=9)
    for window in WINDOWS:
        grads = []
        for attend in (plainly, through_blocks, through_checkpoint):
            *heads, sink = inputs(g, s, t, requires_grad=True)
            leaves = [*heads, sink] if has_sink else heads
            output = attend(*heads, window, sink if has_sink else None, mask)
            grads.append(torch.autograd.grad((output * weighting).sum(), leaves))
        for found in grads[1:]:
            torch.testing.assert_close(found, grads[0])


def through_blocks(query, key, value, window, sink, mask, **more):
    return attend_windowed(
        query, key, value, scale=SCALE, window=window, sink=sink, attention_mask=mask, **more
    )


def through_checkpoint(*arguments):
    return checkpoint(through_blocks, *arguments, use_reentrant=False)


@pytest.mark.parametrize("has_sink", [False, True])
def test_windowed_attention_passes_gradcheck_with_dropout(has_sink):
    *heads, sink = inputs(2, 5, 7, requires_grad=True)

    def attend(query, key, value, sink=None):
        torch.manual_seed(1)  # the same weights are dropped
        return through_blocks(query, key, value, 3, sink, None, dropout=0.3)

    assert torch.autograd.gradcheck(attend, [*heads, sink] if has_sink else heads)


def test_windowed_attention_dropout_keeps_the_mean_of_the_weights():
    query, key, _, sink = inputs(2, T, T)
    # Values that show each weight: the output is the row of weights.
    value = torch.eye(T, dtype=torch.float64).expand(B, 2, T, T)
    whole = through_blocks(query, key, value, 6, sink, None)
    torch.manual_seed(0)
    dropped = torch.stack(
        [through_blocks(query, key, value, 6, sink, None, dropout=0.25) for _ in range(400)]
    )
    is_kept = dropped != 0
    torch.testing.assert_close(dropped[is_kept], (whole / 0.75).expand_as(dropped)[is_kept])
    share = is_kept[:, whole != 0].double().mean().item()
    assert share == pytest.approx(0.75, abs=0.01)
    assert through_blocks(query, key, value, 6, sink, None, dropout=1.0).count_nonzero() == 0


@pytest.mark.parametrize("window", [T, T + 1, None])
def test_window_of_the_whole_context_equals_the_fused_kernel(window):
    query, key, value, _ = inputs(H, T, T)
    fused = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE)
    torch.testing.assert_close(through_blocks(query, key, value, window, None, None), fused)


@pytest.mark.parametrize("mask", [None, "by query"])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_windowed_attention_in_bfloat16_is_near_float64(is_autocast, mask):
    mask = masks(mask, T, T)
    weighting = normal(B, H, T, V, dtype=torch.float64, seed=9)
    rounded = [x.bfloat16() for x in inputs(2, T, T)]
    results = []
    for attend, dtype in ((plainly, torch.float64), (through_blocks, None)):
        dtype = dtype or (torch.float32 if is_autocast else torch.bfloat16)
        leaves = [x.to(dtype).requires_grad_() for x in rounded]
        *heads, sink = leaves
        with torch.autocast("cpu", enabled=is_autocast and dtype == torch.float32):
            output = attend(*heads, 6, sink, mask)
        grads = torch.autograd.grad((output.double() * weighting).sum(), leaves)
        assert [x.dtype for x in grads] == [dtype] * 4
        results.append((output.double(), *(x.double() for x in grads)))
    assert output.dtype == torch.bfloat16
    # A score, its weight, and the weight's gradient are each rounded to 8 bits.
    for found, expected in zip(results[1], results[0], strict=True):
        tolerance = 4 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
        assert (found - expected).abs().max() < tolerance


def test_windowed_attention_keeps_memory_in_proportion_to_the_window():
    kept = {}
    for t in (64, 128):
        sizes = []
        heads = inputs(2, t, t, requires_grad=True)[:3]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            through_blocks(*heads, 8, None, None)
        kept[t] = sum(sizes)
    assert 1.9 < kept[128] / kept[64] < 2.1


@pytest.mark.parametrize(("s", "window"), [(T, 0), (T + 1, 3)])
def test_windowed_attention_refuses_an_empty_window_and_too_few_keys(s, window):
    query, key, value, _ = inputs(2, s, T)
    with pytest.raises(ValueError, match=r"window .* at least 1, and .* queries at most 11 keys"):
        through_blocks(query, key, value, window, None, None)


@pytest.mark.slow
def test_windowed_attention_compiles_to_one_graph():
    *heads, sink = inputs(2, T, T, requires_grad=True)
    arguments = (*heads, 6, sink, masks("padded", T, T))
    compiled = torch.compile(through_blocks, backend="aot_eager", fullgraph=True)
    found, expected = (
        torch.autograd.grad(attend(*arguments).sin().sum(), (*heads, sink))
        for attend in (compiled, through_blocks)
    )
    torch.testing.assert_close(found, expected)
