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
    if rows > _MOST_COLUMNS or not _HAS_MKL or not x.is_cpu or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if rows > 1:
        product = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    elif rows == 1 and weight.numel() >= _MANY_WEIGHTS and torch.get_num_threads() > 1:
        product = _split_over_threads(x, weight, torch.get_num_threads())
    else:
        return F.linear(x, weight, bias)
    if bias is not None:
        product = product.add_(bias)  # in place, as autocast may have chosen another dtype
    return product.view(*x.shape[:-1], weight.shape[0])


def _split_over_threads(row: Tensor, weight: Tensor, parts: int) -> Tensor:
    """Multiply a row [..., in] by as many parts of the weight as there are threads: [1, out]."""
    out, width = weight.shape
    per_part = out // parts
    if per_part == 0 or not weight.is_contiguous() or not row.is_contiguous():
        return F.linear(row.reshape(1, width), weight)
    # Each view is one call: at a token's pace they count.
    columns = weight.as_strided((parts, width, per_part), (per_part * width, 1, width))
    product = torch.bmm(row.as_strided((parts, 1, width), (0, 0, 1)), columns).view(1, -1)
    if parts * per_part == out:
        return product
    rest = F.linear(row.view(1, width), weight[parts * per_part :])
    return torch.cat((product, rest), dim=1)


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)
