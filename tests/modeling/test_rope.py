import math

import pytest
import torch
from tiny import FIVE, build_gpt, normal, random_tokens

import modeling.rope
from modeling.norms import RMSNorm
from modeling.rope import Positions, apply_rotary, rotary_cos_sin

POSITIONS = torch.tensor([0, 1, 2, 5, 90, 1000, 1_000_000])
SHAPE = (3, 4, 7, 6)
THETA = 10000.0


def as_complex(x, positions, theta=THETA):
    """RoFormer's equation in complex numbers: dimension j is real, j + r / 2 imaginary."""
    width = x.shape[-1]
    angles = [[int(p) * theta ** (-2 * j / width) for j in range(width // 2)] for p in positions]
    ones = torch.ones(len(positions), width // 2, dtype=torch.float64)
    turn = torch.polar(ones, torch.tensor(angles, dtype=torch.float64))
    turned = torch.complex(*x.double().chunk(2, -1)) * turn
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rotation_equals_multiplication_by_complex_numbers(dtype):
    x = normal(*SHAPE, dtype=dtype)
    rotated = apply_rotary(x, POSITIONS, THETA)
    assert rotated.dtype == dtype
    atol = 64 * torch.finfo(dtype).eps if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(rotated.double(), as_complex(x, POSITIONS), rtol=0, atol=atol)


def test_rotation_keeps_the_norm_of_every_pair():
    x = normal(*SHAPE, dtype=torch.float64)
    rotated = apply_rotary(x, POSITIONS, THETA)
    before, after = (torch.hypot(*each.chunk(2, -1)) for each in (x, rotated))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
    assert (rotated - x)[:, :, 1:].abs().amax(-1).min() > 1e-3
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("shift", [1, 17, 1_000_000])
def test_only_the_relative_position_matters(shift):
    query, key = normal(1, 2, 7, 6, dtype=torch.float64), normal(1, 2, 7, 6, seed=1).double()
    positions = torch.tensor([4, 0, 2, 9, 1, 1, 30])

    def scores(by):
        rotated = (apply_rotary(x, positions + by, THETA) for x in (query, key))
        return torch.einsum("bhsr,bhtr->bhst", *rotated)

    torch.testing.assert_close(scores(shift), scores(0), rtol=0, atol=1e-8)
    moved = torch.einsum(
        "bhsr,bhtr->bhst",
        apply_rotary(query, positions + 1, THETA),
        apply_rotary(key, positions, THETA),
    )
    assert (moved - scores(0)).abs().max() > 0.1


def test_positions_of_each_row_equal_the_rows_one_by_one():
    x = normal(*SHAPE)
    positions = torch.stack([POSITIONS, POSITIONS.flip(0), POSITIONS // 3])
    together = apply_rotary(x, positions, THETA)
    alone = torch.cat([apply_rotary(x[b : b + 1], positions[b], THETA) for b in range(3)])
    assert torch.equal(together, alone)


def test_zero_width_passes():
    empty = torch.empty(3, 4, 7, 0)
    assert apply_rotary(empty, POSITIONS, THETA).shape == empty.shape
    cos, sin = rotary_cos_sin(POSITIONS, 0, THETA, torch.float32)
    assert cos.shape == sin.shape == (7, 0)


def test_angles_are_exact_at_large_positions():
    # In float32 the angle of position 1,000,003 is off by up to 0.03.
    cos, sin = rotary_cos_sin(torch.tensor([1_000_003]), 4, THETA, torch.float32)
    for j, frequency in enumerate((1.0, THETA**-0.5)):
        assert cos[0, j].item() == pytest.approx(math.cos(1_000_003 * frequency), abs=1e-7)
        assert sin[0, j].item() == pytest.approx(math.sin(1_000_003 * frequency), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rotated_in_float32_and_rounded_once(dtype):
    x = normal(*SHAPE, dtype=dtype)
    rotated = apply_rotary(x, POSITIONS, THETA)
    assert rotated.dtype == dtype
    assert torch.equal(rotated, apply_rotary(x.float(), POSITIONS, THETA).to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_layout_equals_transformers_llama(theta):
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(head_dim=6, rope_parameters={"rope_type": "default", "rope_theta": theta})
    query, key = normal(*SHAPE), normal(*SHAPE, seed=1)
    positions = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6], [9, 3, 3, 40, 0, 7, 2], [5, 5, 5, 1, 2, 3, 39]]
    )
    cos, sin = LlamaRotaryEmbedding(config)(query, positions)
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    ours = (apply_rotary(x, positions, theta) for x in (query, key))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


# Cosines that layers share


@pytest.fixture
def computed(monkeypatch):
    """The widths that cosines were computed for, call by call."""
    widths = []

    def spy(positions, rope_head_dim, theta, dtype):
        widths.append(rope_head_dim)
        return rotary_cos_sin(positions, rope_head_dim, theta, dtype)

    monkeypatch.setattr(modeling.rope, "rotary_cos_sin", spy)
    return widths


def test_known_cosines_change_nothing():
    x, wider = normal(*SHAPE), normal(3, 4, 7, 8, dtype=torch.float64)
    rows = torch.stack([POSITIONS, POSITIONS.flip(0), POSITIONS // 3])
    given = {"one": POSITIONS, "rows": rows, "later": POSITIONS + 1}
    shared = {name: Positions(index) for name, index in given.items()}
    for each in (x, wider, x.double(), x.bfloat16(), x):
        for name in ("one", "rows", "later", "one"):
            for theta in (THETA, 5e5):
                alone = apply_rotary(each, given[name], theta)
                assert torch.equal(apply_rotary(each, shared[name], theta), alone)


def test_cosines_are_computed_once_for_each_positions_width_base_and_dtype(computed):
    positions = Positions(POSITIONS)
    assert Positions.of(positions) is positions
    for _ in range(3):
        apply_rotary(normal(*SHAPE), positions, THETA)
        apply_rotary(normal(3, 1, 7, 6).bfloat16(), positions, THETA)  # in float32 too
        apply_rotary(normal(3, 1, 7, 8), positions, THETA)
    assert computed == [6, 8]
    for theta in (THETA, 5e5, THETA, 5e5):
        apply_rotary(normal(*SHAPE), positions, theta)
    apply_rotary(normal(*SHAPE).double(), positions, THETA)
    assert computed == [6, 8, 6, 6]
    for _ in range(2):
        apply_rotary(normal(*SHAPE), POSITIONS, THETA)
    assert computed == [6, 8, 6, 6, 6, 6]


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_a_model_computes_cosines_once_a_pass(name, grad, computed):
    width = FIVE[name]["qk_rope_head_dim"]
    model = build_gpt(name, num_hidden_layers=3)
    cache, tokens = model.new_cache(2, 9), random_tokens(2, 9)
    rows = torch.arange(9).expand(2, 9).clone()
    with torch.set_grad_enabled(grad):
        for passes, given in enumerate(
            (
                (tokens,),
                (tokens, rows),
                (tokens[:, :5], None, cache),
                (tokens[:, 5:6], None, cache),
                (tokens[:, 6:7], rows[:, 6:7], cache),
            ),
            start=1,
        ):
            model(*given)
            assert computed == [width] * (passes if width else 0)


# Without a gradient nothing goes through an autograd function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rotation_and_norm_without_gradients_equal_those_with(dtype):
    x = normal(*SHAPE, dtype=dtype)
    norm = RMSNorm(6)
    with torch.no_grad():
        norm.weight.copy_(normal(6, seed=4))
        rotated, normalised = apply_rotary(x, POSITIONS, THETA), norm(x)
    assert torch.equal(rotated, apply_rotary(x.clone().requires_grad_(), POSITIONS, THETA))
    assert torch.equal(normalised, norm(x.clone().requires_grad_()))
    assert rotated.dtype == normalised.dtype == dtype
    with torch.inference_mode():
        assert torch.equal(norm(x), normalised)
        assert torch.equal(apply_rotary(x, POSITIONS, THETA), rotated)


def test_rotation_and_norm_leave_their_input_alone():
    x = normal(*SHAPE)
    before, norm = x.clone(), RMSNorm(6)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            apply_rotary(x, POSITIONS, THETA)
            norm(x)
        assert torch.equal(x, before)
