"""What the machine offers: device, precision, memory and matmul speed."""

import contextlib
import os
import sys
import time
from pathlib import Path

import torch

from measuring.machine import bytes_in_proc, cpu_count, load_of_others
from training.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        TrainingError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise TrainingError(f"device ('{name}') must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device=cuda, but PyTorch sees no CUDA device; use device=cpu or auto")
    return torch.device(name)


def pick_autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for float32; `auto` takes bfloat16 where it is native."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def has_native_bfloat16(device: torch.device) -> bool:
    """Say whether the device computes in bfloat16 itself instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without such instructions a CPU emulates bfloat16, a hundred times slower than float32.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def busy_machine_advice(num_threads: int) -> str:
    """Return a line for a CPU on which others run; '' where there is room.

    The threads of a matrix product wait for the last of them, which has to wait for a CPU. They are
    not lowered unasked: a run resumes bit for bit only with as many as it had.

    Args:
        num_threads: That this training will use.
    """
    load, cpus = load_of_others(), cpu_count()
    if load is None or load <= cpus or num_threads == 1:
        return ""
    return (
        f"the machine is busy: others have work for {load:.1f} CPUs, and there are {cpus}; if "
        f"training with {num_threads} threads is slow, set trainer.num_threads=1"
    )


def choose_determinism(deterministic: bool) -> None:
    """Let PyTorch use only kernels that repeat their result bit for bit, or all of them again.

    On a CPU training repeats itself anyway. An operation that has no such kernel on a GPU raises a
    RuntimeError that names it.
    """
    if deterministic:
        # cuBLAS reads it when it is first used (docs.nvidia.com/cuda/cublas, reproducibility).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The call imports PyTorch's compiler, a third of a second that most runs need not wait.
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` start from now: one run of several does not report another's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held on the device since the reset (for a CPU, resident).

    Where the system cannot reset its record, it is that of the whole process; 0 where it keeps
    none.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kernels = bytes_in_proc("self/status", "VmHWM")
    if kernels is not None:
        return kernels
    try:
        import resource  # Unix only
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_matmul_flops(
    device: torch.device, dtype: torch.dtype, size: int | None = None
) -> float:
    """Return the best FLOP/s of a few [size, size] matrix products, 2 size^3 each.

    Takes a quarter of a second: two products at least (the first warms up), eight at most.

    Args:
        device: Where.
        dtype: Of the matrices.
        size: 1024 on a CPU and 8192 on a GPU if not given: large enough to be busy.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    began = time.perf_counter()
    for number in range(8):
        # A CPU that emulates bfloat16 takes seconds for one.
        if number >= 2 and time.perf_counter() - began > 0.25:
            break
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
