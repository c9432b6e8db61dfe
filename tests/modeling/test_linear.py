"""Linear layers: the same product by whichever way is fast."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny import assert_near, normal

import modeling.linear
from modeling.linear import Linear, linear

# [out, in] just below and above the number of weights from which threads share a row; nothing
# divides by 2 or 3.
BELOW, ABOVE = (509, 257), (509, 259)


@pytest.fixture(autouse=True)
def columns_on_any_cpu(monkeypatch):
    monkeypatch.setattr(modeling.linear, "_MOST_COLUMNS", 32)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_product(x, weight, bias=None):
    output = linear(x, weight, bias)
    wide = None if bias is None else bias.double()
    expected = F.linear(x.double(), weight.double(), wide)
    assert output.shape == expected.shape
    assert output.dtype == x.dtype
    assert output.is_contiguous()
    assert_near(output.detach(), expected.detach())


@pytest.mark.parametrize("shape", [BELOW, ABOVE, (2, 2**16)], ids=str)
def test_product_equals_the_float64_one_for_any_number_of_rows(shape, threads):
    weight, bias = normal(*shape, seed=1), normal(shape[0], seed=2)
    for rows in range(1, 41) if threads == 2 else (1, 2, 3, 32, 33):
        x = normal(rows, shape[1], seed=rows)
        assert_product(x, weight)
        assert_product(x, weight, 100 * bias)


@pytest.mark.parametrize("shape", [BELOW, ABOVE], ids=str)
@pytest.mark.parametrize("leading", [(), (1,), (1, 1), (5, 1), (1, 2, 3), (40, 1), (0,), (2, 0)])
def test_product_keeps_the_leading_dimensions(leading, shape, threads):
    x = normal(*leading, shape[1])
    weight, bias = normal(*shape, seed=1), normal(shape[0], seed=2)
    if x.numel():
        assert_product(x, weight)
        assert_product(x, weight, bias)
    else:
        assert linear(x, weight, bias).shape == (*leading, shape[0])


def test_product_of_what_does_not_lie_in_one_piece(threads):
    out, width = ABOVE
    weight, bias = normal(out, width, seed=1), normal(out, seed=2)
    wider = normal(out, 2 * width, seed=3)
    for rows in (1, 4):
        for x in (
            normal(width, rows).t(),
            normal(rows, 2 * width)[:, ::2],
            normal(rows, 3, width)[:, 1],
            normal(1, width).expand(rows, width),
            normal(rows, width, 2).transpose(1, 2)[:, 1],
        ):
            assert_product(x, weight, bias)
            assert_product(x, wider[:, ::2], bias)
            assert_product(x, wider[:, :width], bias)
            assert_product(x, normal(width, out, seed=3).t())


def test_which_way_a_product_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    split, few = [], []
    run, mm = modeling.linear._split_over_threads, torch.mm
    monkeypatch.setattr(
        modeling.linear,
        "_split_over_threads",
        lambda row, weight, parts: split.append((len(row), parts)) or run(row, weight, parts),
    )
    monkeypatch.setattr(torch, "mm", lambda a, b: few.append(b.shape[1]) or mm(a, b))
    for shape, rows in itertools.product((BELOW, ABOVE), (1, 2, 32, 33)):
        linear(normal(rows, shape[1]), normal(*shape))
    assert split == [(1, 2)]
    assert few == [2, 32, 2, 32]
    for dtype in (torch.float64, torch.bfloat16):
        for rows in (1, 4):
            linear(normal(rows, ABOVE[1], dtype=dtype), normal(*ABOVE, dtype=dtype))
    assert (len(split), len(few)) == (1, 4)


def test_a_row_is_split_over_the_threads(threads, monkeypatch):
    parts, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: parts.append(len(a)) or bmm(a, b))
    linear(normal(1, ABOVE[1]), normal(*ABOVE))
    assert parts == ([] if threads == 1 else [threads])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_left_to_pytorch(dtype, threads):
    weight, bias = normal(*ABOVE, dtype=dtype, seed=1), normal(ABOVE[0], dtype=dtype, seed=2)
    for rows in (1, 4):
        x = normal(rows, ABOVE[1], dtype=dtype)
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("needs_input_gradient", [False, True], ids=["weights_only", "all"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("threads", [3], indirect=True)
def test_gradients_equal_those_of_torch(rows, needs_input_gradient, bias, threads):
    ours, theirs = Linear(ABOVE[1], ABOVE[0], bias), torch.nn.Linear(ABOVE[1], ABOVE[0], bias)
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    inputs = [normal(rows, 1, ABOVE[1], dtype=dtype) for dtype in (torch.float32, torch.float64)]
    weighting = normal(rows, 1, ABOVE[0], seed=5)
    for module, x in zip((ours, theirs), inputs, strict=True):
        x.requires_grad_(needs_input_gradient)
        (module(x) * weighting).sum().backward()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_near(mine.grad, expected.grad)
    if needs_input_gradient:
        assert_near(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("rows", [1, 3, 33])
def test_product_under_autocast_has_the_dtype_of_pytorchs(rows):
    x, weight, bias = normal(rows, 4), normal(5, 4), normal(5)
    with torch.autocast("cpu", torch.bfloat16):
        for given in ((weight,), (weight, bias)):
            assert linear(x, *given).dtype == F.linear(x, *given).dtype == torch.bfloat16
