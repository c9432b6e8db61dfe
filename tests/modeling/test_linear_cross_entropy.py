import math

import pytest
import torch
import torch.nn.functional as F
from tiny import FIVE, build_gpt, normal, random_tokens

from modeling import loss
from modeling.loss import linear_cross_entropy, linear_token_nll

ROWS, N, M = 13, 61, 20
# Rows at a time: all, some with a rest, one.
CHUNKS = pytest.mark.parametrize("chunk_rows", [1000, 13, 5, 1])


def problem(dtype=torch.float64):
    hidden = (3 * normal(ROWS, M, dtype=dtype)).requires_grad_()
    weight = normal(N, M, dtype=dtype, seed=1).requires_grad_()
    return hidden, weight, random_tokens(ROWS)


@CHUNKS
def test_loss_and_gradients_equal_cross_entropy(chunk_rows, monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", chunk_rows * N + 3)
    hidden, weight, targets = problem()
    expected = F.cross_entropy(hidden @ weight.t(), targets)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    actual = linear_cross_entropy(hidden, weight, targets)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    for mine, theirs in zip(torch.autograd.grad(3 * actual, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)


@CHUNKS
def test_z_loss_adds_its_gradient_and_leaves_the_value(chunk_rows, monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", chunk_rows * N)
    hidden, weight, targets = problem()
    logits = hidden @ weight.t()
    expected = F.cross_entropy(logits, targets)
    penalised = expected + 0.3 * logits.logsumexp(1).square().mean()
    wanted = torch.autograd.grad(penalised, (hidden, weight))
    actual = linear_cross_entropy(hidden, weight, targets, z_loss_weight=0.3)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    for mine, theirs in zip(torch.autograd.grad(actual, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)


@CHUNKS
def test_bfloat16_autocast_is_near_float32(chunk_rows, monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", chunk_rows * N)
    hidden, weight, targets = problem(torch.float32)
    expected = F.cross_entropy(hidden @ weight.t(), targets)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = linear_cross_entropy(hidden, weight, targets)
    assert actual.dtype == torch.float32
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(actual, expected, rtol=4 * eps, atol=0)
    for mine, theirs in zip(torch.autograd.grad(actual, (hidden, weight)), wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=8 * eps * theirs.abs().max().item())


@CHUNKS
def test_token_nll_equals_cross_entropy_of_each_row(chunk_rows, monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", chunk_rows * N)
    hidden, weight, targets = problem()
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(linear_token_nll(hidden, weight, targets), expected.detach())


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    hidden, weight, targets = torch.zeros(ROWS, M), torch.randn(N, M), random_tokens(ROWS)
    assert linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(math.log(N))
    assert linear_token_nll(hidden, weight, targets).tolist() == pytest.approx([math.log(N)] * ROWS)


def test_logits_beyond_the_range_of_exp_are_no_problem():
    hidden, weight, targets = problem(torch.float32)
    huge = (1000 * hidden).detach().requires_grad_()
    value = linear_cross_entropy(huge, weight, targets)
    value.backward()
    assert value.isfinite()
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", FIVE)
def test_model_loss_and_gradients_equal_cross_entropy_of_its_logits(name, tied):
    model = build_gpt(name, tie_word_embeddings=tied).double()
    tokens, targets = random_tokens(3, 9), random_tokens(3, 9, seed=4)
    parameters = list(model.parameters())
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    wanted = torch.autograd.grad(expected, parameters)
    actual = model.loss(tokens, targets)
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(torch.autograd.grad(actual, parameters), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


def test_model_token_nll_averages_to_its_loss():
    model = build_gpt("gqa")
    tokens, targets = random_tokens(3, 9), random_tokens(3, 9, seed=4)
    nll = model.token_nll(tokens, targets)
    assert nll.shape == (3, 9)
    assert not nll.requires_grad
    torch.testing.assert_close(nll.mean(), model.loss(tokens, targets).detach())
