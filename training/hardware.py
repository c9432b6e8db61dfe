"""What the machine offers: device, precision, memory and matmul speed."""

import resource
import sys
import time

import torch

from training.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        TrainingError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise TrainingError(f"device ('{name}') must be auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError("device=cuda, but PyTorch sees no CUDA device; use device=cpu or auto")
    return torch.device(name)


def pick_autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for float32; `auto` takes bfloat16 where it is native."""
    if precision == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without such instructions a CPU emulates bfloat16, a hundred times slower than float32.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held on the device (for a CPU, resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Return the best FLOP/s of a few [size, size] matrix products, 2 size^3 each."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
