"""Saving and putting back a run on one rank or on several, whole or sharded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.errors import RunError
from modeling.gpt import GPT
from tracking.checkpoint import Checkpoint, checkpoint_bytes
from tracking.checkpoints import CheckpointStore
from tracking.parts import read_into, shapes, write_parts
from training.endurance.rng import set_rng_tensors
from training.ranks.parallel import local_part
from training.ranks.world import World
from training.recipe.muon import Muon
from training.recipe.optim import load_optimizer_tensors, optimizer_tensors

Kind = tuple[torch.Size, torch.dtype]
# What an optimizer keeps of each parameter, from its first step on; all but `step` is shaped as it.
_STATE_OF = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


@dataclass(eq=False)
class RunCheckpoints:
    """A run's checkpoints as all ranks see them: rank 0 keeps the folder.

    Args:
        store: The folder; only rank 0 writes to it.
        world: The ranks.
        model: Whose weights are saved.
        optimizers: Whose state is saved.
        sharded: Whether each rank holds a part of both, and writes it.
    """

    store: CheckpointStore
    world: World
    model: GPT
    optimizers: Sequence[torch.optim.Optimizer]
    sharded: bool = field(kw_only=True)

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that rank 0 finds intact; tensors that stay sharded are not.

        Raises:
            RunError: If there are checkpoints and all of them are damaged.
        """
        names = ["rng"] if self.sharded else None
        if self.world.size == 1:
            return self.store.load_newest(names=names)
        found: list[Checkpoint] = []

        def find() -> int | None:
            # All of it is verified, also what each rank will read for itself.
            checkpoint = self.store.load_newest(verify_all=True, names=names)
            found.extend([checkpoint] if checkpoint else [])
            return checkpoint.step if checkpoint else None

        step = self.world.from_main(find)
        if step is None:
            return None
        return found[0] if found else self.store.load(step, names=names)

    def require_room(self, num_saves: int, *, with_best: bool) -> None:
        """Refuse a training whose checkpoints will not fit on the disk, before its first step.

        Args:
            num_saves: To come.
            with_best: Whether one may be kept as the best in addition to the last ones.

        Raises:
            WriteFailed: With the bytes needed and free.
        """
        if not self.world.is_main:
            return
        kinds = [*self._weights().values(), *self._moments().values()]
        each = checkpoint_bytes(shape.numel() * dtype.itemsize for shape, dtype in kinds)
        # A sharded one is written once more at the end (`make_whole`).
        self.store.require_room(each, num_saves + self.sharded, with_best=with_best)

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Put weights, optimizer state and random state of a checkpoint back, exactly.

        Raises:
            RunError: If a tensor is missing, is not of its shape and dtype, or holds what is no
                number, naming it.
            KeyError, RuntimeError: If it is another version's (see `same_version`).
        """
        path = checkpoint.path
        if self.sharded:
            self._read_own_parts(path)
        else:
            device, tensors = self.world.device, checkpoint.tensors
            for group, kinds in (("model", self._weights()), ("optimizer", self._moments())):
                _require_kinds(path, _kinds(tensors[group]), kinds)
                _require_finite(path, tensors[group])
            self.model.load_state_dict({k: t.to(device) for k, t in tensors["model"].items()})
            state = {k: t.to(device) for k, t in tensors["optimizer"].items()}
            load_optimizer_tensors(self.model, self.optimizers, state)
        states = _of_rank(checkpoint.tensors["rng"], self.world.rank)
        if states or self.world.is_main:
            set_rng_tensors(states, self.world.device)

    def save(
        self, step: int, state: dict[str, Any], random_state: dict[str, Tensor], best: int | None
    ) -> None:
        """Save a checkpoint; every rank has to call it, and none returns before it is there.

        Args:
            step: Optimizer steps done.
            state: Plain JSON values; rank 0's are written.
            random_state: This rank's, from `rng_tensors`.
            best: Step of the checkpoint with the best validation.

        Raises:
            RunError: If it cannot be written.
        """
        rng = self._of_all_ranks(random_state)
        tensors = self._tensors()
        if not self.sharded:
            if self.world.is_main:
                self.store.save(step, {**tensors, "rng": rng}, state, best=best)
        elif self.world.is_main:
            parts = _Parts(tensors, self.world)
            self.store.save(step, {"rng": rng}, state, parts, best=best)
        else:
            write_parts(Path(self.world.from_main(lambda: None)), tensors)
        # A rank that went ahead could end, and have torchrun end rank 0 while it writes.
        self.world.from_main(lambda: None)

    def make_whole(self, best: int | None) -> None:
        """Replace the newest checkpoint, if it is sharded, by one with a file for each group.

        Rank 0 reads the shards and writes them again, so it needs the memory of model and
        optimizer state on the CPU, once.

        Args:
            best: Step of the checkpoint with the best validation.

        Raises:
            RunError: If it cannot be read or written.
        """
        if self.sharded and self.world.is_main:
            newest = self.store.load(self.store.steps()[-1])
            self.store.save(newest.step, newest.tensors, newest.state, best=best)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizers),
        }

    def _weights(self) -> dict[str, Kind]:
        return _kinds(self.model.state_dict())

    def _moments(self) -> dict[str, Kind]:
        """Return what the optimizers' state is after a step, by `<parameter name>/<key>`."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": (
                (torch.Size(), torch.float32)
                if key == "step"
                else (parameter.shape, parameter.dtype)
            )
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            for key in _STATE_OF[type(optimizer)]
        }

    def _of_all_ranks(self, random_state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the random state of each rank; those of rank 0 have the plain names."""
        return {
            _name(key, rank): tensor
            for key, own in random_state.items()
            for rank, tensor in enumerate(self.world.gathered(own))
        }

    def _read_own_parts(self, folder: Path) -> None:
        """Read this rank's parts of the tensors, whoever wrote them."""
        model = self.model.state_dict()
        parameters = dict(self.model.named_parameters())
        moments = self._moments()
        found = shapes(folder)
        random = {name for name in found if name not in model and "/" not in name}
        known = {name: kind for name, kind in found.items() if name not in random}
        _require_kinds(folder, known, self._weights() | moments)
        optimizer = {}
        for path, (size, dtype) in moments.items():
            parameter = parameters[path.rpartition("/")[0]]
            # State of a parameter's shape is sharded as it is; steps and the like are whole.
            optimizer[path] = (
                torch.empty_like(parameter, dtype=dtype, requires_grad=False)
                if size == parameter.shape
                else torch.empty(size, dtype=dtype, device=self.world.device)
            )
        read_into(folder, {**model, **optimizer})
        _require_finite(folder, {**model, **optimizer})
        load_optimizer_tensors(self.model, self.optimizers, optimizer)


class _Parts:
    """What rank 0's store needs in order to have all ranks write."""

    def __init__(self, groups: dict[str, dict[str, Tensor]], world: World) -> None:
        self.groups = groups
        self._world = world

    def write(self, folder: Path) -> None:
        """Name the folder to the others, and write with them."""
        write_parts(Path(self._world.from_main(lambda: str(folder))), self.groups)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _require_kinds(path: Path, found: Mapping[str, Kind], wanted: Mapping[str, Kind]) -> None:
    """Refuse what PyTorch would convert without a word, or stumble over at the next step.

    Raises:
        RunError: Naming the first tensor that is missing, one too many, or not as it has to be.
    """
    for name in sorted({*found, *wanted}):
        if found.get(name) == wanted.get(name):
            continue
        has, needs = (_in_words(kinds.get(name)) for kinds in (found, wanted))
        raise RunError(
            f"{path} does not belong to this model and optimizer: {name} is {has}, not {needs}; "
            "choose another run_name, or remove the run's folder and train it again"
        )


def _in_words(kind: Kind | None) -> str:
    return "missing" if kind is None else f"{[*kind[0]]} of {str(kind[1]).removeprefix('torch.')}"


def _require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights and moments that no training leaves, before any is computed with.

    Raises:
        RunError: Naming the first tensor that holds NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if not local_part(tensor).isfinite().all():
            raise RunError(
                f"{path} cannot be resumed: {name} holds values that are not finite; remove that "
                "folder to resume from an older checkpoint, or train with another run_name"
            )


def _name(key: str, rank: int) -> str:
    return key if rank == 0 else f"{key}_{rank}"


def _of_rank(states: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return a rank's random states by their plain names; empty if there was no such rank."""
    return {key: states[_name(key, rank)] for key in ("cpu", "cuda") if _name(key, rank) in states}
