"""One run, trained or resumed in its folder."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from commands.initial_model import Initial
from commands.run_state import has_checkpoint, start_run
from data.prepared import PreparedData
from launch.recorded import as_values
from launch.schemas import TrainConfig
from settings.run import Recipe
from tracking.run_folder import RunFolder
from tracking.wandb_mirror import WandbMirror
from training.endurance.resumption import newest_checkpoint_hint
from training.errors import TrainingInterrupted
from training.loop import train
from training.machine.signals import ignore_signals
from training.ranks.world import World


def train_run(
    run: RunFolder,
    config: TrainConfig,
    prepared: PreparedData,
    world: World,
    say: Callable[[str], None],
    first_lines: str = "",
    initial: Initial | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train a run, or resume it, unless it is finished.

    Args:
        run: Its folder.
        config: What is recorded.
        prepared: The corpus.
        world: The ranks that train it.
        say: Prints a line.
        first_lines: Said before the training, if there is any.
        initial: Reads the weights that it begins with; random ones if not given.

    Returns:
        What summary.json holds, and whether the run was finished before.

    Raises:
        ConfigError: If the run exists with another configuration.
    """
    recipe = recipe_of(config)
    with run.lock() if world.is_main else contextlib.nullcontext():
        finished = world.from_main(lambda: start_run(run, config, prepared, say))
        if finished is not None:
            return finished, True
        if first_lines:
            say(first_lines)
        if has_checkpoint(run):
            initial = None  # its weights are the checkpoint's
        if initial is not None:
            model = config.model
            say(
                f"begins with the weights in {config.init_from}, which decides the model: "
                f"{model.attention['name']}, {model.num_hidden_layers} layers of width "
                f"{model.hidden_size}; the context is this training's, "
                f"{model.max_position_embeddings} tokens (model.max_position_embeddings); "
                "attention=, layers= and other keys of the model have no effect"
            )
        tracking = dataclasses.replace(
            config.tracking, wandb=config.tracking.wandb and world.is_main
        )
        mirror = WandbMirror(
            tracking,
            run.path,
            config.run_name,
            as_values(config),
            say,
            resumes=has_checkpoint(run),
        )
        failed = True
        try:
            with world.reporting_errors(lambda: newest_checkpoint_hint(run.checkpoints_path)):
                summary = train(recipe, prepared, run, mirror, say, world, initial)
            failed = False
        except TrainingInterrupted:
            ignore_signals(but_ctrl_c=True)  # schedulers ask twice
            raise
        finally:
            mirror.finish(exit_code=int(failed))
    return summary, False


def recipe_of(config: TrainConfig) -> Recipe:
    """Return what decides a run's numbers."""
    return Recipe(
        model=config.model,
        optim=config.optim,
        schedule=config.schedule,
        trainer=config.trainer,
        eval=config.eval,
        sampling=config.sampling,
        seed=config.seed,
    )
