"""A process that trains one system when it is its turn, and the parent's end of its pipe.

One process per system, because allocator settings, imports and peak memory are a process's. It
builds, warms up, and then waits in a blocking read: while one trains, the others use no CPU.
Messages are JSON, one a line, over stdin and what was stdout.
"""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.train_systems import SYSTEMS, Job, start_as_train_model_does

ROOT = Path(__file__).resolve().parent.parent
MATMUL = "matmul"
"""The system that multiplies matrices: the peak that utilisation is measured against."""

# Whatever the caller's shell has set, a worker begins from glibc's defaults.
_ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "BENCHMARK_ALLOCATOR")
_TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "536870912",
    "BENCHMARK_ALLOCATOR": "default",  # or kvlab would set its own on top
}
ALLOCATORS: dict[str, dict[str, str]] = {
    "as-started": {},
    "tuned": _TUNED,
    "default": {"BENCHMARK_ALLOCATOR": "default"},
}
_NUM_BATCHES = 8


class WorkerError(Exception):
    """A system cannot be measured; one line that says why."""


def _allocator_settings() -> dict[str, str]:
    """Return the environment variables that say how this process allocates."""
    return {k: v for k, v in os.environ.items() if k.startswith(_ALLOCATOR_VARIABLES)}


class Worker:
    """The parent's end: starts the process, and asks for turns.

    Args:
        job: What it measures.
        allocator: A key of `ALLOCATORS`.

    Raises:
        WorkerError: If it could not be built, warmed up or asked.
    """

    def __init__(self, job: Job, allocator: str) -> None:
        self.job = job
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_ALLOCATOR_VARIABLES)}
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.train",
                "--worker",
                json.dumps(dataclasses.asdict(job)),
            ],
            cwd=ROOT,
            env=inherited | ALLOCATORS[allocator],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.facts = self._receive()
        except BaseException:
            self.close()
            raise

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it do so many steps, and return what it measured."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing too
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = ["", *self._errors.read().strip().splitlines()][-1]
            raise WorkerError(f"its process ended with status {status} {last}".strip())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A turn would have to be waited for.
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


def serve(text: str) -> None:
    """Be a worker: build what the job says, then do turns until stdin ends.

    Args:
        text: The job as JSON.
    """
    job = Job(**json.loads(text))
    if job.system in SYSTEMS and not SYSTEMS[job.system].is_peer:
        start_as_train_model_does()
    # Libraries print; what they print must not look like an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        measured = _Matmul(job) if job.system == MATMUL else _Steps(job)
        answer(measured.facts)
        for line in sys.stdin:
            answer(measured.turn(int(line)))
    except Exception as error:
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def _prepare_torch(job: Job) -> None:
    import torch

    # torch.optim imports it with the first optimizer; it belongs to the imports, for everyone.
    import torch._dynamo

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.manual_seed(0)


class _Matmul:
    """Measures the machine's peak, as `perf/mfu` of a run does."""

    def __init__(self, job: Job) -> None:
        import torch

        from training.machine.hardware import measure_matmul_flops

        _prepare_torch(job)
        device, dtype = torch.device(job.device), getattr(torch, job.dtype)
        self._measure = lambda: measure_matmul_flops(device, dtype)
        self._measure()
        self.facts = {"threads": torch.get_num_threads()}

    def turn(self, steps: int) -> dict[str, Any]:
        del steps  # it is the best of a few products anyway
        return {"flops": self._measure()}


class _Steps:
    """Trains a system."""

    def __init__(self, job: Job) -> None:
        import torch

        from training.machine.hardware import peak_memory_bytes, reset_peak_memory

        _prepare_torch(job)
        self._device = torch.device(job.device)
        self._peak = lambda: peak_memory_bytes(self._device)
        build = SYSTEMS[job.system].build(job)
        imports = _resident_bytes() if self._device.type == "cpu" else 0

        started = time.perf_counter()
        self._training = build()
        generator = torch.Generator().manual_seed(0)
        shape = (_NUM_BATCHES, job.batch, job.context + 1)
        tokens = torch.randint(job.model["vocab_size"], shape, generator=generator)
        self._batches = [
            (
                batch[:, :-1].contiguous().to(self._device),
                batch[:, 1:].contiguous().to(self._device),
            )
            for batch in tokens
        ]
        self._next = 0
        for _ in range(job.warmup_steps):
            self._step()
        self.facts = {
            "num_parameters": sum(p.numel() for p in self._training.model.parameters()),
            "import_bytes": imports,
            "warmup_seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
            "warmup_peak_bytes": self._peak(),
            "allocator_variables": _allocator_settings(),
        }
        reset_peak_memory(self._device)

    def _step(self) -> tuple[float, float]:
        """Do one step; return its seconds and loss."""
        tokens, targets = self._batches[self._next % _NUM_BATCHES]
        self._next += 1
        self._synchronize()
        started = time.perf_counter()
        loss = self._training.step(tokens, targets)
        self._synchronize()
        return time.perf_counter() - started, loss

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    def turn(self, steps: int) -> dict[str, Any]:
        faults = _page_faults()
        seconds, losses = zip(*(self._step() for _ in range(steps)), strict=True)
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]}")
        return {
            "seconds": statistics.median(seconds),
            "page_faults": (_page_faults() - faults) / steps,
            "peak_bytes": self._peak(),
            "loss": losses[-1],
        }


def _page_faults() -> int:
    """Return how often the kernel had to hand this process a page that was not on disk."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _resident_bytes() -> int:
    """Return what the process occupies now; where that cannot be read, the most it ever did."""
    import torch

    from measuring.machine import bytes_in_proc
    from training.machine.hardware import peak_memory_bytes

    now = bytes_in_proc("self/status", "VmRSS")
    return peak_memory_bytes(torch.device("cpu")) if now is None else now
