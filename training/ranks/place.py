"""Which of several processes this one is, as torchrun's environment says; imports no torch."""

import os
from dataclasses import dataclass

from training.errors import TrainingError


@dataclass(frozen=True)
class Place:
    """This process among those that train one model together.

    Attributes:
        rank: From 0 to size - 1; rank 0 alone writes, prints and talks to wandb.
        size: Processes on all machines.
        local_rank: Number of this process on its machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def place() -> Place:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without them, or with one rank, a process is alone.

    Raises:
        TrainingError: If they are set and do not fit together.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return Place()
    rank, local_rank = _number("RANK", -1), _number("LOCAL_RANK", 0)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or not 0 <= rank < size or local_rank < 0:
        raise TrainingError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but RANK ({os.environ.get('RANK')}), "
            f"LOCAL_RANK ({local_rank}), MASTER_ADDR and MASTER_PORT do not belong to it; start "
            "several ranks with torchrun, or unset WORLD_SIZE to train with one"
        )
    return Place(rank, size, local_rank)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise TrainingError(
            f"the environment variable {name} ('{text}') must be a number"
        ) from None
