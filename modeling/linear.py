"""Linear layers whose product is computed the way that is fast for a decoding step's few rows.

On a CPU PyTorch hands them to MKL, which multiplies a single row on one thread, and few rows by a
kernel made for many. docs/performance.md, "Decoding", has the measurements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# From so many weights on, threads are worth their start.
_MANY_WEIGHTS = 2**17
# So few rows are faster as columns of the right factor; measured on CPUs without AVX-512 only.
_MOST_COLUMNS = 32 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 1
_HAS_MKL = torch.backends.mkl.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weightᵀ + bias, as `torch.nn.functional.linear`.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].

    Returns:
        [..., out], contiguous.
    """
    rows = x.numel() // weight.shape[1]
    if rows > 32 or rows == 0 or not _HAS_MKL or not x.is_cpu or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if rows == 1:
        if weight.numel() < _MANY_WEIGHTS:
            return F.linear(x, weight, bias)
        product = _split_over_threads(x.reshape(1, -1), weight)
    elif rows <= _MOST_COLUMNS:
        product = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    else:
        return F.linear(x, weight, bias)
    if bias is not None:
        product = product.add_(bias)  # in place, as autocast may have chosen another dtype
    return product.view(*x.shape[:-1], -1)


def _split_over_threads(row: Tensor, weight: Tensor) -> Tensor:
    """Multiply a row [1, in] by as many parts of the weight as there are threads: [1, out]."""
    num_parts = torch.get_num_threads()
    out, width = weight.shape
    per_part = out // num_parts
    if num_parts == 1 or per_part == 0 or not weight.is_contiguous():
        return F.linear(row, weight)
    parts = weight[: num_parts * per_part].view(num_parts, per_part, width)
    product = torch.bmm(row.expand(num_parts, 1, width), parts.transpose(1, 2)).view(1, -1)
    if num_parts * per_part == out:
        return product
    return torch.cat((product, F.linear(row, weight[num_parts * per_part :])), dim=1)


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)
