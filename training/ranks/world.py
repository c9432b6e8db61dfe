"""Several processes that train one model: what they say to each other.

torchrun starts the processes and ends the others when one dies. One process alone is a world of
one: no process group is made, and every method returns what it was given.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.ranks.ending import Rank

_STOP = "stop"


class World(Rank):
    """This process among those that train one model together (arguments: see `Rank`)."""

    _turn = 0

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
        """Return whether any rank's flag is set, the same on all."""
        return flag if self.size == 1 else self._reduced(float(flag), "MAX") > 0

    def least(self, value: float) -> float:
        """Return the least of every rank's values, the same on all."""
        return value if self.size == 1 else -self._reduced(-value, "MAX")

    def first_reason(self, reason: str | None) -> str | None:
        """Return the reason to stop that any rank has, the same on all; None if none has one."""
        if self.size == 1:
            return reason
        if reason:
            self.store.set(_STOP, reason)
        return self.store.get(_STOP).decode() if self.any(bool(reason)) else None

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
            call: Returns plain JSON values. What it raises ends all ranks (see `reporting_errors`).
        """
        if self.size == 1:
            return call()
        self._turn += 1
        key = f"main/{self._turn}"
        if self.is_main:
            value = call()
            self.store.set(key, json.dumps(value))
            return value
        return json.loads(self._wait_for(key))

    def meet(self) -> None:
        """Wait until every rank is here, for as long as each gives signs of life."""
        if self.size == 1:
            return
        self._turn += 1
        key = f"meeting/{self._turn}"
        if self.store.add(key, 1) == self.size:
            self.store.set(f"{key}/all", "")
        self._wait_for(f"{key}/all")

    def _reduced(self, value: float, operation: str) -> float:
        import torch.distributed as dist

        # On the CPU (gloo) also where gradients travel by NCCL: the device need not be waited for.
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.item()
