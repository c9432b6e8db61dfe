"""Several processes that train one model: what they tell each other, and how they end together.

torchrun starts the processes and ends the others when one dies. One process alone is a world of
one: no process group is made, and every method returns what it was given.

Ranks wait for rank 0 by asking torchrun's key-value store, which has no time limit, because rank 0
may prepare data for hours. The first rank that fails tells why, once for all.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracking.failures import is_lost_rank
from training.errors import AlreadyTold, TrainingError, TrainingInterrupted
from training.hardware import pick_device
from training.interrupt import ignore_signals
from training.ranks import Place, place

# Rank 0 may write a checkpoint to a slow disk for long while the others wait for its gradients; a
# rank that died is noticed by its closed connections or by torchrun, not by this.
_COLLECTIVE_TIMEOUT = timedelta(hours=2)
_ENDED = "ended"
_REASON = "ended/reason"
_STOP = "stop"

_worlds_joined = 0


class World:
    """This process among those that train one model together.

    Args:
        where: Its rank.
        device: Where it computes.
        store: torchrun's key-value store; None for a process alone.
        tell: Prints an error.
    """

    def __init__(
        self,
        where: Place,
        device: torch.device,
        store: Any = None,
        tell: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._place = where
        self.rank = where.rank
        self.size = where.size
        self.device = device
        self._store = store
        self._tell = tell
        self._turn = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self._place.is_main

    def share_of(self, sequences: int) -> int:
        """Return this rank's part of the sequences of one pass.

        Raises:
            TrainingError: If the ranks cannot get equal parts.
        """
        if sequences % self.size:
            raise TrainingError(
                f"trainer.micro_batch_size ({sequences}) is of all ranks together and must be "
                f"divisible by their number ({self.size}); set trainer.micro_batch_size="
                f"{-(-sequences // self.size) * self.size}, or start another number of ranks"
            )
        return sequences // self.size

    def mean(self, value: float) -> float:
        """Return the mean of every rank's value, the same on all."""
        return value if self.size == 1 else self._reduced(value, "SUM") / self.size

    def any(self, flag: bool) -> bool:
        """Tell whether any rank's flag is set, the same on all."""
        return flag if self.size == 1 else self._reduced(float(flag), "MAX") > 0

    def first_reason(self, reason: str | None) -> str | None:
        """Return the reason to stop that any rank has, the same on all; None if none has one."""
        if self.size == 1:
            return reason
        if reason:
            self._store.set(_STOP, reason)
        return self._store.get(_STOP).decode() if self.any(bool(reason)) else None

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all ranks, of equal shapes, in the order of the ranks."""
        if self.size == 1:
            return [tensor]
        import torch.distributed as dist

        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor)
        return tensors

    def from_main(self, call: Callable[[], Any]) -> Any:
        """Return on every rank what `call` returns on rank 0, which alone runs it.

        Args:
            call: Returns plain JSON values. What it raises ends every rank (see `telling`).
        """
        if self.size == 1:
            return call()
        self._turn += 1
        key = f"main/{self._turn}"
        if self.is_main:
            value = call()
            self._store.set(key, json.dumps(value))
            return value
        return json.loads(self._wait_for(key))

    @contextmanager
    def telling(self, resume_hint: Callable[[], str] | None = None) -> Iterator[None]:
        """Let an error of one rank end them all, told once; a process alone just raises it.

        Args:
            resume_hint: Says where a rerun begins, should another rank die; without it that is an
                error as any other.

        Raises:
            AlreadyTold: In place of whatever was raised within.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except AlreadyTold:
            raise
        except BaseException as error:
            reason = error
            if resume_hint is not None and is_lost_rank(error):
                reason = TrainingInterrupted(
                    "another rank died or lost its connection; rerun the same command to go on "
                    + resume_hint()
                )
            raise AlreadyTold(self._end(reason)) from error

    def _end(self, error: BaseException) -> str:
        """Tell why, unless another rank did; return the name of the error that was told."""
        kind = type(error).__name__
        if threading.current_thread() is threading.main_thread():
            ignore_signals()  # torchrun is about to ask for what is happening here
        try:
            if self._store.add(_ENDED, 1) > 1:
                # It prints before it says so: torchrun ends all soon after the first has ended.
                return self._wait_for_reason(seconds=5.0) or kind
            self._tell(error)
            self._store.set(_REASON, kind)
        except RuntimeError:  # the store is gone with its host
            self._tell(error)
        return kind

    def _wait_for_reason(self, seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._store.check([_REASON]):
                return self._store.get(_REASON).decode()
            time.sleep(0.01)
        return None

    def _wait_for(self, key: str) -> str:
        pause = 0.001
        while not self._store.check([key]):
            if self._store.check([_REASON]):
                raise AlreadyTold(self._store.get(_REASON).decode())
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return self._store.get(key).decode()

    def _reduced(self, value: float, operation: str) -> float:
        import torch.distributed as dist

        # On the CPU (gloo) also where gradients travel by NCCL: the device need not be waited for.
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.item()


@contextmanager
def joined(device_name: str, tell: Callable[[BaseException], None]) -> Iterator[World]:
    """Be one of the ranks that torchrun started, or alone where it started none.

    Args:
        device_name: auto, cpu or cuda. Of several ranks on CUDA each takes the GPU of its number.
        tell: Prints an error; called by the first rank that has one.

    Raises:
        TrainingError: If there is no such device, or none for this rank.
        AlreadyTold: In place of what any rank raised within, once there are several.
    """
    where = place()
    device = pick_device(device_name)
    if where.size == 1:
        yield World(where, device)
        return
    import torch.distributed as dist

    world = World(where, device, _own_part_of_store(), tell)
    with world.telling():
        if device.type == "cuda":
            device = world.device = _own_gpu(where)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", world._store),
            rank=where.rank,
            world_size=where.size,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        yield world
        world.from_main(lambda: None)  # rank 0 has the last word
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


def newest_checkpoint_hint(folder: Path) -> str:
    """Say where a rerun begins, without reading a checkpoint.

    Args:
        folder: Of a run's checkpoints.
    """
    from tracking.checkpoints import CheckpointStore

    steps = CheckpointStore(folder, 1, read_only=True).steps()
    return f"from the checkpoint of step {steps[-1]}" if steps else "from the beginning"
