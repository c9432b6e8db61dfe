"""How elements are stored: dtypes, the scales of int8, and bytes.

What is stored may be narrower than what attention computes with. int8 elements share one bfloat16
scale per token and head, chosen so that the largest of them becomes 127.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

CACHE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)
SCALE_DTYPE = torch.bfloat16
"""The dtype of the scales of int8 elements: float32's range in two bytes."""
_LARGEST_INT8 = 127.0


def cache_dtype_of(name: str | None) -> torch.dtype | None:
    """Return the dtype that a setting names, such as bfloat16; None for None."""
    return None if name is None else {str(d): d for d in CACHE_DTYPES}[f"torch.{name}"]


def bytes_per_token(entries: Mapping[str, tuple[int, int]], dtype: torch.dtype) -> int:
    """Return the bytes that a token leaves in one layer, scales included; closed form.

    Args:
        entries: Entry name -> (heads, width).
        dtype: Of the stored elements.
    """
    scale = SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    return sum(heads * (width * dtype.itemsize + scale) for heads, width in entries.values())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each once: what *measured* means."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def quantised(elements: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 elements and their scales, [..., 1]: elements = int8 x scale, nearly."""
    wide = elements.to(torch.promote_types(elements.dtype, torch.float32))
    largest = wide.abs().amax(dim=-1, keepdim=True)
    scale = (largest / _LARGEST_INT8).to(SCALE_DTYPE)
    # By the scale as it is stored, so that rounding it costs no accuracy; zeros stay zeros.
    divisor = scale.to(wide.dtype).clamp_min_(torch.finfo(SCALE_DTYPE).tiny)
    rounded = (wide / divisor).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8)
    return rounded.to(torch.int8), scale
