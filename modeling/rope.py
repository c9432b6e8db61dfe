"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split layout.

The layout is that of transformers' Llama, and of its DeepSeek-V3 with `rope_interleave=False`:
dimension j is rotated together with dimension j + r/2.
"""

from typing import Any

import torch
from torch import Tensor

MOST_TABLED = 2**16
"""Positions from this one on are computed each time, so that no table grows without bound."""


class Positions:
    """Positions of tokens, and the cosines of their rotation, computed once for all layers.

    Args:
        index: [s] or [b, s] integer positions, which must not be written to meanwhile.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index
        self._known: dict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, positions: "Tensor | Positions") -> "Positions":
        """Return positions of which only the tensor may be known."""
        return positions if isinstance(positions, Positions) else cls(positions)

    def cos_sin(self, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos, cos and -sin, sin of each position, both [s, width] or [b, 1, s, width]."""
        key = (width, theta, dtype)
        # A compiler sees by itself that all layers need the same cosines.
        known = None if torch.compiler.is_compiling() else self._known.get(key)
        if known is None:
            cos, sin = rotary_cos_sin(self.index, width, theta, dtype)
            known = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
            if not torch.compiler.is_compiling():
                self._known[key] = known
        return known


class HeldPositions(Positions):
    """Positions of held tokens, which come back at each step: their cosines are looked up.

    The tables, 2 r numbers a position, serve all layers of all models of this process.
    """

    def cos_sin(self, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what `Positions.cos_sin` does, bit for bit."""
        if torch.compiler.is_compiling() or self.index.numel() == 0:
            return super().cos_sin(width, theta, dtype)
        lowest, highest = (int(bound) for bound in self.index.aminmax())
        if lowest < 0 or highest >= MOST_TABLED:
            return super().cos_sin(width, theta, dtype)
        table = _tabled(highest, width, theta, dtype, self.index.device)
        rows = table.index_select(0, self.index.flatten()).view(*self.index.shape, 2 * width)
        if self.index.dim() == 2:
            rows = rows.unsqueeze(1)
        return rows[..., :width], rows[..., width:]


_TABLES: dict[tuple[int, float, torch.dtype, torch.device], Tensor] = {}


def _tabled(
    highest: int, width: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a table [more than highest, 2 width] of what `Positions.cos_sin` returns."""
    key = (width, theta, dtype, device)
    table = _TABLES.get(key)
    if table is None or table.shape[0] <= highest:
        size = max(256, 2 ** highest.bit_length())
        with torch.inference_mode(False):  # a training step may need it later
            index = torch.arange(size, device=device)
            table = _TABLES[key] = torch.cat(Positions(index).cos_sin(width, theta, dtype), dim=-1)
    return table


def rotary_cos_sin(
    positions: Tensor, rope_head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine of every position's rotation angles.

    The angles are computed from the positions themselves, in float64, so that no table has to be
    sized beforehand and position 1,000,000 is as exact as position 1.

    Args:
        positions: [s] or [b, s] integer positions, any values.
        rope_head_dim: r, even, may be 0.
        theta: Base of the frequencies, theta ** (-2 j / r) for j < r / 2.
        dtype: Of the result; float32 or wider.

    Returns:
        cos and sin, each [s, r/2], or [b, 1, s, r/2] for positions [b, s] (the 1 stands for heads).
    """
    exponent = torch.arange(0, rope_head_dim, 2, device=positions.device, dtype=torch.float64)
    inverse_frequency = theta ** (-exponent / max(rope_head_dim, 1))
    angles = positions.to(torch.float64).unsqueeze(-1) * inverse_frequency
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


class _Rotate(torch.autograd.Function):
    """`_rotated` with little memory traffic; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., r] by what `Positions.cos_sin` returns."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), sin)


def apply_rotary(
    x: Tensor, positions: Tensor | Positions, theta: float, *, back: bool = False
) -> Tensor:
    """Rotate the last dimension of x by its positions, in float32 or wider.

    Args:
        x: [b, heads, s, r], r even (0 returns x as it is).
        positions: [s] or [b, s] integer positions.
        theta: Base of the frequencies.
        back: Rotate the other way, which undoes it.

    Returns:
        [b, heads, s, r] in x's dtype.

    Source:
        RoFormer, equation 34, in the half-split order of transformers' `rotate_half`.
    """
    width = x.shape[-1]
    if width == 0:
        return x
    # What rotating a token costs is the calls: none is made in vain.
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    cos, sin = Positions.of(positions).cos_sin(width, theta, wide.dtype)
    sin = -sin if back else sin
    rotate = _Rotate.apply if torch.is_grad_enabled() else _rotated
    rotated = rotate(wide, cos, sin)
    return rotated if wide is x else rotated.to(x.dtype)


def rotate_last(
    x: Tensor, positions: Tensor | Positions, width: int, theta: float, *, back: bool = False
) -> Tensor:
    """Rotate the last `width` dimensions of x [b, heads, s, d] alone; see `apply_rotary`."""
    if width == x.shape[-1]:
        return apply_rotary(x, positions, theta, back=back)
    if width == 0:
        return x
    still, rotary = x.split([x.shape[-1] - width, width], dim=-1)
    return torch.cat((still, apply_rotary(rotary, positions, theta, back=back)), dim=-1)
