"""What a run would take (`dry_run`)."""

import dataclasses

from commands.fair_rate import missing_in_grid
from commands.model_of_run import describe_model, with_tokenizer
from commands.run_state import has_begun
from commands.training_run import recipe_of
from data.pipeline import prepared_folder
from data.prepared import PreparedData
from launch import sweep, terminal
from launch.recorded import require_same_run
from launch.schemas import TrainConfig
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder
from training import cost_sheet, dry_run
from training.ranks.world import World
from training.recipe.budget import make_budget


def report_cost(run: RunFolder, config: TrainConfig, world: World) -> None:
    """Say what a run would take from here on, and leave nothing behind.

    Raises:
        ConfigError: If the run exists with another configuration, as training it would.
    """
    say = terminal.say if world.is_main else terminal.say_nothing
    folder = prepared_folder(config.data, config.tokenizer)
    is_prepared = world.from_main(folder.exists)
    corpus: PreparedData | dry_run.Unprepared
    if is_prepared:
        corpus = PreparedData(folder)
    else:
        corpus = dry_run.stand_in(config.data, config.tokenizer, config.model.vocab_size)
    asked = config.model
    config = dataclasses.replace(with_tokenizer(config, corpus), dry_run=False)
    if has_begun(run):
        require_same_run(run.config_path, config)
    if (summary := run.read_summary()) and summary.get("finished"):
        say(f"{run.name} is finished: it would take nothing")
        return
    steps = CheckpointStore(run.checkpoints_path, 1, read_only=True).steps()
    first_step = steps[-1] if steps else 0

    say(describe_model(asked, config.model))
    recipe = recipe_of(config)
    measured = dry_run.measure(recipe, corpus, world)
    arguments = (config.data, config.tokenizer, config.runs_path, first_step, measured)
    lines = cost_sheet.describe(recipe, corpus, *arguments)
    say("\n".join([f"{run.name}, a dry run: nothing is written", *lines]))
    context = config.model.max_position_embeddings
    budget = make_budget(config.trainer, config.schedule, context)
    cost = cost_sheet.cost_of(recipe, budget, first_step, measured)
    costs = {run.name: cost}
    if config.fair_lr:
        whole = cost_sheet.cost_of(recipe, budget, 0, measured)
        grid = missing_in_grid(config)
        costs |= dict.fromkeys(grid, whole)
        if grid:
            first = cost_sheet.total([whole] * len(grid))
            say(f"fair_lr=true trains {len(grid)} runs first: {first.describe()}")
    if sweep.current:
        sweep.current.expect(costs)
