import math

import pytest
import torch
from tiny import normal

from modeling.rope import apply_rotary, rotary_cos_sin

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
