"""Saving and putting back a run on one rank or on several, whole or sharded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling.gpt import GPT
from tracking.checkpoints import Checkpoint, CheckpointStore
from tracking.shards import read_into, shapes, write_shards
from training.distributed import World
from training.optim import load_optimizer_tensors, optimizer_tensors
from training.rng import set_rng_tensors


class RunCheckpoints:
    """A run's checkpoints as all ranks see them: rank 0 keeps the folder.

    Args:
        store: The folder; only rank 0 writes to it.
        world: The ranks.
        model: Whose weights are saved.
        optimizers: Whose state is saved.
        sharded: Whether each rank holds a part of both, and writes it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        model: GPT,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        sharded: bool,
    ) -> None:
        self._store = store
        self._world = world
        self._model = model
        self._optimizers = optimizers
        self._sharded = sharded

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that rank 0 finds intact; tensors that stay sharded are not.

        Raises:
            RunError: If there are checkpoints and all of them are damaged.
        """
        names = ["rng"] if self._sharded else None
        if self._world.size == 1:
            return self._store.load_newest(names=names)
        found: list[Checkpoint] = []

        def find() -> int | None:
            # All of it is verified, also what each rank will read for itself.
            checkpoint = self._store.load_newest(verify_all=True, names=names)
            found.extend([checkpoint] if checkpoint else [])
            return checkpoint.step if checkpoint else None

        step = self._world.from_main(find)
        if step is None:
            return None
        return found[0] if found else self._store.load(step, names=names)

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Put weights, optimizer state and random state of a checkpoint back, exactly.

        Raises:
            KeyError, RuntimeError: If it is another version's (see `same_version`).
        """
        if self._sharded:
            self._read_own_parts(checkpoint.path)
        else:
            device, tensors = self._world.device, checkpoint.tensors
            self._model.load_state_dict({k: t.to(device) for k, t in tensors["model"].items()})
            state = {k: t.to(device) for k, t in tensors["optimizer"].items()}
            load_optimizer_tensors(self._model, self._optimizers, state)
        states = _of_rank(checkpoint.tensors["rng"], self._world.rank)
        if states:
            set_rng_tensors(states, self._world.device)

    def save(self, step: int, state: dict[str, Any], random_state: dict[str, Tensor]) -> None:
        """Save a checkpoint; every rank has to call it, and none returns before it is there.

        Args:
            step: Optimizer steps done.
            state: Plain JSON values; rank 0's are written.
            random_state: This rank's, from `rng_tensors`.

        Raises:
            RunError: If it cannot be written.
        """
        rng = self._of_all_ranks(random_state)
        tensors = self._tensors()
        if not self._sharded:
            if self._world.is_main:
                self._store.save(step, {**tensors, "rng": rng}, state)
        elif self._world.is_main:
            self._store.save(step, {"rng": rng}, state, _Shards(tensors, self._world))
        else:
            write_shards(Path(self._world.from_main(lambda: None)), tensors)
        # A rank that went ahead could end, and have torchrun end rank 0 while it writes.
        self._world.from_main(lambda: None)

    def protect(self, step: int) -> None:
        """Keep the checkpoint with the best validation."""
        if self._world.is_main:
            self._store.protect(step)

    def make_whole(self) -> None:
        """Replace the newest checkpoint, if it is sharded, by one with a file for each group.

        Rank 0 reads the shards and writes them again, so it needs the memory of model and
        optimizer state on the CPU, once.

        Raises:
            RunError: If it cannot be read or written.
        """
        if self._sharded and self._world.is_main:
            newest = self._store.load(self._store.steps()[-1])
            self._store.save(newest.step, newest.tensors, newest.state)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self._model.state_dict(),
            "optimizer": optimizer_tensors(self._model, self._optimizers),
        }

    def _of_all_ranks(self, random_state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the random state of each rank; those of rank 0 have the plain names."""
        return {
            _name(key, rank): tensor
            for key, own in random_state.items()
            for rank, tensor in enumerate(self._world.gathered(own))
        }

    def _read_own_parts(self, folder: Path) -> None:
        """Read this rank's parts of the tensors, whoever wrote them."""
        model = self._model.state_dict()
        parameters = dict(self._model.named_parameters())
        optimizer = {}
        for path, (size, dtype) in shapes(folder).items():
            name, _, key = path.rpartition("/")
            if key and name in parameters:
                parameter = parameters[name]
                # State of a parameter's shape is sharded as it is; steps and the like are whole.
                optimizer[path] = (
                    torch.empty_like(parameter, dtype=dtype, requires_grad=False)
                    if size == parameter.shape
                    else torch.empty(size, dtype=dtype, device=self._world.device)
                )
        read_into(folder, {**model, **optimizer})
        load_optimizer_tensors(self._model, self._optimizers, optimizer)


class _Shards:
    """What rank 0's store needs in order to have all ranks write."""

    def __init__(self, groups: dict[str, dict[str, Tensor]], world: World) -> None:
        self.groups = groups
        self._world = world

    def write(self, folder: Path) -> None:
        """Tell the others the folder, and write with them."""
        write_shards(Path(self._world.from_main(lambda: str(folder))), self.groups)


def _name(key: str, rank: int) -> str:
    return key if rank == 0 else f"{key}_{rank}"


def _of_rank(states: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return a rank's random states by their plain names; empty if there was no such rank."""
    return {key: states[_name(key, rank)] for key in ("cpu", "cuda") if _name(key, rank) in states}
