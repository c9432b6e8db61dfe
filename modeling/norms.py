"""Normalisation in float32 or wider, whatever the dtype around it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDE = (torch.float32, torch.float64)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / rms over the last dimension, [..., 1]."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return mean_square.add_(eps).rsqrt_()


class _RMSNormalise(torch.autograd.Function):
    """weight * x / rms(x), with few passes over memory: autograd's own would take twice as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse_rms = _inverse_rms(x, eps)
        normalised = x * inverse_rms
        ctx.save_for_backward(normalised, inverse_rms, weight)
        return normalised * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # With y = x / rms(x):  d/dx = (g - y mean(g y)) / rms(x)  for the gradient g of y.
        normalised, inverse_rms, weight = ctx.saved_tensors
        grad_weight = (grad * normalised).flatten(0, -2).sum(0)
        grad = grad * weight
        with torch.autocast(grad.device.type, enabled=False):  # it would round this product
            mean = torch.linalg.vecdot(grad, normalised).unsqueeze(-1).div_(normalised.shape[-1])
        return grad.addcmul_(normalised, mean, value=-1).mul_(inverse_rms), grad_weight, None


def rms_normalised(x: Tensor, eps: float) -> Tensor:
    """Return x [..., width] over its root mean square, in x's dtype: RMSNorm without a weight."""
    wide = x if x.dtype in _WIDE else x.float()
    normalised = F.rms_norm(wide, wide.shape[-1:], eps=eps)
    return normalised if wide is x else normalised.to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        width: Of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension. [..., width] -> [..., width], x's dtype."""
        # What a token's norm costs is the calls: none is made in vain.
        wide = x if x.dtype in _WIDE else x.float()
        if not torch.is_grad_enabled():
            normalised = wide * _inverse_rms(wide, self.eps) * self.weight
            return normalised if wide is x else normalised.to(x.dtype)
        return _RMSNormalise.apply(wide, self.weight, self.eps).to(x.dtype)
