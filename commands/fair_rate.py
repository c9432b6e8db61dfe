"""The learning rate that a grid of runs finds (`fair_lr`)."""

import dataclasses
import math
import os
from collections.abc import Callable

from commands.initial_model import Initial
from commands.training_run import train_run
from data.prepared import PreparedData
from launch.schemas import TrainConfig
from measuring.errors import BrokenWeights
from tracking.run_folder import RunFolder
from tracking.wandb_environment import forget_names_of_one_run
from training.errors import TrainingDiverged, TrainingError
from training.ranks.world import World
from training.recipe.fair_rate import (
    GRID_FOLDER,
    GRID_SEED,
    choose,
    describe,
    grid,
    name_in_grid,
)


def with_fair_rate(
    config: TrainConfig,
    prepared: PreparedData,
    world: World,
    say: Callable[[str], None],
    initial: Initial | None,
) -> TrainConfig:
    """Return the configuration with the learning rate that a grid of runs speaks for.

    The runs that are missing are trained first.

    Raises:
        TrainingError: If several ranks train: an error of one, a diverged run, ends them all.
    """
    if world.size > 1:
        raise TrainingError(
            f"fair_lr=true trains its grid in one process, not in {world.size} ranks; find the "
            "rate without torchrun, then set fair_lr=false and that optim.learning_rate"
        )
    nlls: dict[float, float] = {}
    # They are the run's that is trained afterwards, not those of the grid.
    names_of_one_run = forget_names_of_one_run()
    for rate in grid(config.optim.learning_rate, config.fair_lr_factors):
        one = dataclasses.replace(
            config,
            run_name=name_in_grid(config.run_name, config.seed, rate),
            runs_dir=str(config.runs_path / GRID_FOLDER),
            study=None,
            seed=GRID_SEED,
            # As of a run by itself: grids that overlap share it.
            fair_lr=False,
            fair_lr_factors=TrainConfig().fair_lr_factors,
            optim=dataclasses.replace(config.optim, learning_rate=rate),
        )
        try:
            folder = RunFolder(one.runs_path, one.run_name)
            summary, _ = train_run(folder, one, prepared, world, say, initial=initial)
            nlls[rate] = summary["validation_nll"]
        except (TrainingDiverged, BrokenWeights):
            nlls[rate] = math.inf
    os.environ.update(names_of_one_run)
    choice = choose(nlls)
    say(describe(nlls, choice))
    optim = dataclasses.replace(config.optim, learning_rate=choice.learning_rate)
    return dataclasses.replace(config, optim=optim)


def missing_in_grid(config: TrainConfig) -> list[str]:
    """Name the runs that a fair learning rate needs and that are not trained yet."""
    rates = grid(config.optim.learning_rate, config.fair_lr_factors)
    names = [name_in_grid(config.run_name, config.seed, rate) for rate in rates]
    folders = {name: RunFolder(config.runs_path / GRID_FOLDER, name) for name in names}
    summaries = {name: folder.read_summary() or {} for name, folder in folders.items()}
    return [name for name, summary in summaries.items() if not summary.get("finished")]
