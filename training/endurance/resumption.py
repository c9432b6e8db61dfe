"""What a checkpoint says of its run beyond tensors, and resuming from it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data.prepared import PreparedData
from files.errors import RunError
from modeling.attention import attention_config
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from settings.run import Recipe
from tracking.checkpoint import Checkpoint, same_version
from tracking.checkpoints import CheckpointStore
from tracking.configuration import PASSES, flat, may_change, sequences_per_step
from tracking.notices import Say
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.provenance import Provenance
from training.errors import TrainingError


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """What a checkpoint remembers beyond tensors; steps are whole optimizer steps done.

    Attributes:
        best_nll, best_step: The lowest validation loss of a saved step, and that step, whose
            checkpoint is kept.
        possible_flops: What the machines that trained it could have done in `train_seconds`.
        peak_memory_bytes: The most of all processes that trained it, one after the other.
        resumes: How many of them resumed what another had saved, and saved in turn.
        numerics_changed: What was different then, so that a resumed run is not the same to the bit.
        versions_changed: Likewise the versions of packages and the commit.
        unfinished: What the last step measured, while its validation is still to come.
    """

    step: int = 0
    train_seconds: float = 0.0
    data_seconds: float = 0.0
    wall_seconds: float = 0.0
    last_loss: float = math.nan
    best_nll: float = math.inf
    best_step: int | None = None
    possible_flops: float = 0.0
    peak_memory_bytes: int = 0
    resumes: int = 0
    numerics_changed: list[str] = []
    versions_changed: list[str] = []
    unfinished: dict[str, float] | None = None


class TrainedOn(msgspec.Struct, frozen=True):
    """The prepared data of a run: where it was, and its hashes."""

    folder: str
    fingerprint: str
    tokenizer_sha256: str


class Recorded(msgspec.Struct):
    """What is read of a checkpoint's state; settings are compared as they stand."""

    progress: Progress
    seed: int
    model: dict[str, Any]
    data: TrainedOn
    numerics: dict[str, str | int | bool]
    # Absent from checkpoints of earlier versions.
    settings: dict[str, Any] = {}


@dataclass(frozen=True)
class Identity:
    """What is trained, on which data, by which software: what a checkpoint says of its run."""

    recipe: Recipe
    prepared: PreparedData
    provenance: Provenance

    def state(self, progress: Progress) -> dict[str, Any]:
        """Return what a checkpoint says: enough to rebuild the model and find its data."""
        # JSON has no infinity or NaN: what has no value yet is left out.
        values = {
            key: value
            for key, value in msgspec.to_builtins(progress).items()
            if not (isinstance(value, float) and not math.isfinite(value))
        }
        settings = dataclasses.asdict(self.recipe)
        prepared = self.prepared
        data = TrainedOn(
            str(prepared.folder.resolve()), prepared.fingerprint, prepared.tokenizer_sha256
        )
        return {
            "progress": values,
            "seed": settings.pop("seed"),
            "model": settings.pop("model"),
            "settings": settings,
            "data": msgspec.to_builtins(data),
            **dataclasses.asdict(self.provenance),
        }


def resume_newest(
    identity: Identity, checkpoints: RunCheckpoints, peak_flops: float, say: Say
) -> Progress:
    """Put the newest checkpoint back, if there is one, and return how far the run is.

    Args:
        identity: What is trained.
        checkpoints: Of the run.
        peak_flops: FLOP/s of this machine.
        say: Prints a line.

    Raises:
        TrainingError: If the checkpoint is of other data or other settings.
        RunError: If it is damaged, or another version's.
    """
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return Progress()
    with same_version(checkpoint.path):
        return resume(checkpoint, identity, checkpoints, peak_flops, say)


def resume(
    checkpoint: Checkpoint,
    identity: Identity,
    checkpoints: RunCheckpoints,
    peak_flops: float,
    say: Say,
) -> Progress:
    """Put a checkpoint back and return the progress it recorded."""
    prepared, provenance = identity.prepared, identity.provenance
    recorded = _recorded(checkpoint, peak_flops)
    fingerprint, progress = recorded.data.fingerprint, recorded.progress
    if fingerprint != prepared.fingerprint:
        raise TrainingError(
            f"{checkpoint.path} was trained on data with fingerprint {fingerprint[:12]}, but "
            f"{prepared.folder} now has {prepared.fingerprint[:12]}; give the run another run_name"
        )
    _require_same_recipe(checkpoint.path, recorded, identity.recipe, say)
    checkpoints.put_back(checkpoint)
    progress.resumes += 1
    after = f"after step {progress.step}"
    for key, now in provenance.numerics.items():
        if (was := recorded.numerics.get(key)) != now:
            say(f"resuming, but not bit for bit: {key} was {was}, is {now}")
            progress.numerics_changed.append(f"{key}: {was} -> {now} {after}")
    software = flat({"versions": provenance.versions, "git_commit": provenance.git_commit})
    for key, (was, now) in _changed(flat(checkpoint.state), software).items():
        progress.versions_changed.append(f"{key.split('.')[-1]}: {was} -> {now} {after}")
    say(f"resuming {checkpoint.path.parent.parent.name} {after}")
    return progress


def _recorded(checkpoint: Checkpoint, peak_flops: float) -> Recorded:
    """Return what a checkpoint says of its run, and of how far it was."""
    state = dict(checkpoint.state)
    if isinstance(known := state.get("progress"), dict):
        # Earlier versions wrote null for what has no value yet.
        state["progress"] = {key: value for key, value in known.items() if value is not None}
    recorded = dataclasses.replace(checkpoint, state=state).read(Recorded)
    progress = recorded.progress
    if progress.step != checkpoint.step:
        raise RunError(
            f"{checkpoint.path} is damaged: its state is that of step {progress.step}; remove that "
            "folder to resume from an older checkpoint"
        )
    if "possible_flops" not in state["progress"]:  # as all did before it was counted
        progress.possible_flops = progress.train_seconds * peak_flops
    return recorded


def _require_same_recipe(path: Path, recorded: Recorded, recipe: Recipe, say: Say) -> None:
    """Refuse a checkpoint of other settings, whatever config.yaml says; say which may be others."""
    old = flat({"seed": recorded.seed, **_with_defaults(recorded.model), **recorded.settings})
    new = flat(dataclasses.asdict(recipe) | _with_defaults(dataclasses.asdict(recipe.model)))
    changed = _changed(old, new)
    is_same_step = sequences_per_step(old) == sequences_per_step(new)
    barred = [key for key in changed if not (may_change(key) or (is_same_step and key in PASSES))]
    listed = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changed.items())
    if barred:
        raise TrainingError(
            f"{path} was trained with other settings ({listed}); give the run another run_name"
        )
    if changed:
        say(f"resuming with other settings: {listed}")


def _with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's settings by group, with the values of keys that there were not yet."""
    try:
        model = GPTConfig(**recorded)
        fields = attention_config(model.attention).settings(model.attention["name"])
    except (TypeError, ModelConfigError):  # of a version with other keys: compared as they stand
        return {"model": recorded}
    settings = dataclasses.asdict(model) | {"attention": fields | model.attention}
    return {"layers": settings.pop("layers"), "model": settings}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that both have with different values; one alone is another version's."""
    return {key: (old[key], new[key]) for key in new if key in old and old[key] != new[key]}


def newest_checkpoint_hint(folder: Path) -> str:
    """Say where a rerun begins, without reading a checkpoint.

    Args:
        folder: Of a run's checkpoints.
    """
    try:
        steps = CheckpointStore(folder, 1, read_only=True).steps()
    except RunError as error:
        return f"({error})"
    return f"from the checkpoint of step {steps[-1]}" if steps else "from the beginning"
