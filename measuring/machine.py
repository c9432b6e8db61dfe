"""What the machine has and does: memory there is, memory a call takes, memory read per second."""

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def bytes_in_proc(file: str, key: str) -> int | None:
    """Return what Linux says in a file of /proc, such as VmRSS in self/status; else None."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


MEMORY_SHARE = 0.8
"""Share of the free memory for caches that are measured or timed."""


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be taken on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return bytes_in_proc("meminfo", "MemAvailable")


def processor_name() -> str:
    """Return what the CPU calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Return the CPUs that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def load_of_others() -> float | None:
    """Return the CPUs that other processes keep busy, by the last minute's load average.

    This process and those that it started, as to prepare data, count with the CPU time that they
    have taken: a load average moves towards what runs by 1 - exp(-t / 60) in t seconds.

    Returns:
        At least 0; None where the system keeps no such average.
    """
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
    own = sum(os.times()[:4]) / 60
    return max(0.0, load - min(own, cpu_count()))


def describe_hardware(device: torch.device) -> str:
    """Say on what numbers were measured."""
    cpus = f"{cpu_count()} CPUs of {processor_name()} ({torch.backends.cpu.get_cpu_capability()})"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cpus}"
    threads = torch.get_num_threads()
    return f"{cpus}, {threads} thread{'s' * (threads != 1)}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_memory_bandwidth(device: torch.device) -> float:
    """Return bytes per second at which memory is read: the best of five sums over a large tensor.

    The tensor, 256 MiB (on a GPU 1 GiB), is larger than any cache.
    """
    elements = 2**26 if device.type == "cpu" else 2**28
    large = torch.ones(elements, device=device)
    large.sum()
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        large.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return elements * large.element_size() / best


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that tensors made during a call took at once.

    On a CPU every allocation of PyTorch's is followed, also those inside its operators; what MKL
    takes for itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    allocations = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(allocations, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
