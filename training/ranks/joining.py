"""Becoming one of the ranks that torchrun started, or one process alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from guards.parent import end_with_parent
from training.errors import TrainingError
from training.machine.hardware import pick_device
from training.ranks.place import Place, place
from training.ranks.world import World

_worlds_joined = 0


@contextmanager
def joined(
    device_name: str, report: Callable[[BaseException], None], timeout_seconds: float
) -> Iterator[World]:
    """Be one of the ranks that torchrun started, or alone where it started none.

    Args:
        device_name: auto, cpu or cuda. Of several ranks on CUDA each takes the GPU of its number.
        report: Prints an error; called by the first rank that has one.
        timeout_seconds: A rank that is silent for longer ends all.

    Raises:
        TrainingError: If there is no such device, or none for this rank.
        AlreadyReported: In place of what any rank raised within, once there are several.
    """
    where = place()
    device = pick_device(device_name)
    if where.size == 1:
        yield World(where, device)
        return
    import torch.distributed as dist

    world = World(where, device, _own_part_of_store(), report, timeout_seconds)
    with world.reporting_errors():
        world.watch_others(world.store.clone())
        if device.type == "cuda":
            device = world.device = _own_gpu(where)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", world.store),
            rank=where.rank,
            world_size=where.size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
        yield world
        world.from_main(lambda: None)  # rank 0 has the last word
        world.stop_watching()
        # Not after an error: NCCL would wait for collectives that never come, and torchrun for us.
        dist.destroy_process_group()


def alone(device_name: str = "auto") -> World:
    """Return the world of a process that trains by itself.

    Raises:
        TrainingError: If there is no such device.
    """
    return World(Place(), pick_device(device_name))


def _own_part_of_store() -> Any:
    """Connect to torchrun's store; the runs of a multirun each get a part of it."""
    import torch.distributed as dist

    global _worlds_joined
    _worlds_joined += 1
    if _worlds_joined == 1:
        end_with_parent(os.getppid())
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore(f"kvlab-{_worlds_joined}", store)


def _own_gpu(where: Place) -> torch.device:
    if where.local_rank >= torch.cuda.device_count():
        raise TrainingError(
            f"rank {where.rank} is number {where.local_rank} on its machine, which has "
            f"{torch.cuda.device_count()} GPUs; start one rank a GPU (torchrun --nproc_per_node="
            f"{torch.cuda.device_count()}), or use trainer.device=cpu"
        )
    device = torch.device("cuda", where.local_rank)
    torch.cuda.set_device(device)
    return device
