"""Readying the machine for a training: determinism, threads, allocator, precision, peak speed."""

from dataclasses import dataclass

import torch

from settings.training import TrainerSettings
from tracking.notices import Say
from training.machine.allocator import tune
from training.machine.hardware import (
    busy_machine_advice,
    choose_determinism,
    measure_matmul_flops,
    peak_memory_bytes,
    pick_autocast_dtype,
    reset_peak_memory,
)


@dataclass(frozen=True)
class Machine:
    """Where a training computes, in what, and how fast that could be.

    Attributes:
        device: Of this process.
        autocast_dtype: What matrices are multiplied in; None for float32.
        peak_flops: FLOP/s of a matrix product, on all ranks together.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    peak_flops: float

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return self.autocast_dtype or torch.float32

    def autocast(self) -> torch.autocast:
        """Return the context in which a forward pass runs."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=enabled)

    def peak_memory_bytes(self) -> int:
        """Return the most memory that this training has held."""
        return peak_memory_bytes(self.device)


def set_up(trainer: TrainerSettings, device: torch.device, num_ranks: int, say: Say) -> Machine:
    """Choose kernels, threads, allocator and precision, and measure the peak speed.

    Args:
        trainer: What is asked for.
        device: Where this process computes.
        num_ranks: Processes that train together, each on such a device.
        say: Prints a line.
    """
    choose_determinism(trainer.deterministic)
    if trainer.num_threads is not None:
        torch.set_num_threads(trainer.num_threads)
    if device.type == "cpu" and (advice := busy_machine_advice(torch.get_num_threads())):
        say(advice)
    if trainer.tune_allocator and device.type == "cpu":
        say(tune())
    autocast_dtype = pick_autocast_dtype(trainer.precision, device)
    # Before the memory is watched, which its matrices are no part of.
    peak_flops = measure_matmul_flops(device, autocast_dtype or torch.float32) * num_ranks
    reset_peak_memory(device)
    return Machine(device, autocast_dtype, peak_flops)
