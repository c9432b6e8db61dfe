"""Finished runs: which there are, and their newest checkpoints as models."""

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.prepared import PreparedData
from files.typed_json import typed
from measuring.corpus import find_prepared
from measuring.errors import EvaluationError
from modeling.config import GPTConfig
from modeling.gpt import GPT
from tracking.checkpoint import same_version
from tracking.checkpoints import CheckpointStore
from tracking.configuration import PASSES, read_configuration, sequences_per_step
from tracking.run_folder import RunFolder, list_finished_runs


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run's newest checkpoint, ready to be used.

    Args:
        model: In evaluation mode, float32.
        prepared: The corpus it was trained on.
        state: What the checkpoint says of itself.
    """

    model: GPT
    prepared: PreparedData
    state: dict[str, Any]


def load_run(
    run: RunFolder,
    device: torch.device,
    say: Callable[[str], None],
    decode_path: str | None = None,
) -> LoadedRun:
    """Build the model that a run's newest checkpoint describes and open its corpus.

    Args:
        run: Which.
        device: Where the model goes.
        say: Receives one line where the user should know something.
        decode_path: How the model reads its cache, if not as its configuration says.

    Raises:
        EvaluationError: If there is no checkpoint, if a finished run's is not that of its last
            step, or if its corpus is gone or another one.
        RunError: If a file of it is damaged.
    """
    # Read-only: another process may be training this run and in the middle of a save.
    store = CheckpointStore(run.checkpoints_path, keep_last=1, say=say, read_only=True)
    steps = store.steps()
    if not steps:
        raise EvaluationError(f"{run.path} has no checkpoint; train it first, or name another run")
    # By its step, so that a damaged one is refused: an older one would pass for the finished model.
    checkpoint = store.load(steps[-1], names=["model"])
    state, tensors = checkpoint.state, checkpoint.tensors["model"]
    with same_version(checkpoint.path):
        keys = ("folder", "fingerprint", "tokenizer_sha256")
        trained_on = {key: checkpoint.value(f"data.{key}", str) for key in keys}
        checkpoint.value("seed", int)
        config = model_config(checkpoint.value("model", dict), checkpoint.path)
        if decode_path is not None:
            for fields in (config.attention, *config.layers.attentions.values()):
                fields["decode_path"] = decode_path
        _require_shapes(config, tensors)
        model = GPT(config)
        model.load_state_dict(tensors)
    _require_last_step(run, checkpoint.step, config)
    prepared = find_prepared(run, trained_on)
    return LoadedRun(model.to(device).eval(), prepared, state)


def model_config(fields: dict[str, Any], path: Path) -> GPTConfig:
    """Return the model that a checkpoint describes.

    Raises:
        TypeError: If it has a setting that there is none of.
        RunError: If a setting is of another type, naming the file at `path` and the setting.
    """
    return typed(dataclasses.asdict(GPTConfig(**fields)), GPTConfig, path)


def _require_shapes(config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse a model that is not as large as its weights, before there is memory for it.

    Raises:
        RuntimeError: Naming what differs.
    """
    layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    if len(layers) != config.num_hidden_layers:
        raise RuntimeError(
            f"its model has {config.num_hidden_layers} layers and weights of {len(layers)}"
        )
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    for name in sorted({*expected, *tensors}):
        ours, theirs = (
            tuple(some[name].shape) if name in some else None for some in (expected, tensors)
        )
        if ours != theirs:
            raise RuntimeError(f"its weights {name} are {theirs}, not {ours} as its model says")


def _require_last_step(run: RunFolder, step: int, config: GPTConfig) -> None:
    """Refuse an older checkpoint of a finished run: it would pass for the finished model.

    Raises:
        EvaluationError: Naming both steps.
    """
    summary = run.read_summary() or {}
    if summary.get("finished") is not True:
        return
    sequences = sequences_per_step(recorded_settings(run))
    tokens = summary.get("tokens_trained")
    if not sequences or type(tokens) is not int:
        raise EvaluationError(
            f"{run.path} does not say for how many steps it was trained ({PASSES[0]} and "
            f"{PASSES[1]} in {run.config_path.name}, tokens_trained in {run.summary_path.name}); "
            "put them back, or train it again"
        )
    steps = tokens / (sequences * config.max_position_embeddings)
    if step != steps:
        raise EvaluationError(
            f"the newest checkpoint of {run.path} is of step {step}, but it was trained for "
            f"{steps:g}; put its last checkpoint back, or remove {run.summary_path.name} and run "
            "its training command again"
        )


def recorded_settings(run: RunFolder) -> dict[str, Any]:
    """Return a run's configuration.

    Raises:
        EvaluationError: If it is empty.
        RunError: If it cannot be read.
    """
    recorded = read_configuration(run.config_path)
    if not recorded:
        raise EvaluationError(f"{run.config_path} is empty; put it back, or train the run again")
    return recorded


def choose_runs(
    runs_dir: Path | str,
    patterns: Sequence[str] | None,
    say: Callable[[str], None],
    study: str | None = None,
) -> list[RunFolder]:
    """Return the finished runs that names choose.

    Args:
        runs_dir: The folder they are in.
        patterns: Names, with * and ? as wildcards; None takes all but those that memorised a few
            sequences (debug=overfit), whose perplexity says nothing.
        say: Receives a line for each run that is left out.
        study: Whose runs are looked for, to say how they are trained.

    Raises:
        EvaluationError: If there are none.
    """
    what = "attention=mla" if study is None else f"-m experiment={study}"
    how = f"train one: python train_model.py {what}"
    finished, problems = list_finished_runs(runs_dir) if Path(runs_dir).is_dir() else ([], [])
    for problem in problems:
        say(problem)
    if not finished:
        raise EvaluationError(f"there is no finished run in {runs_dir}; {how}")
    if patterns is None:
        overfit = [run for run in finished if (run.read_summary() or {}).get("overfit_batches")]
        for run in overfit:
            say(f"{run.name} memorised a few sequences; run={run.name} takes it")
        patterns = [run.name for run in finished if run not in overfit]
        if not patterns:
            raise EvaluationError(f"there is no finished run in {runs_dir} but those; {how}")
    chosen: list[RunFolder] = []
    for pattern in patterns:
        matching = [run for run in finished if fnmatch.fnmatch(run.path.name, pattern)]
        if not matching:
            names = [run.path.name for run in finished]
            begun = [name for name in names if name.startswith(pattern)]
            hint = f"run='{pattern}*' takes {len(begun)} of them; " if begun else ""
            raise EvaluationError(
                f"no finished run in {runs_dir} is called '{pattern}'; {hint}there are: "
                f"{', '.join(names)}"
            )
        chosen += [run for run in matching if run not in chosen]
    return chosen
