"""Training a run, or resuming it: what train_model.py does."""

import dataclasses
from pathlib import Path

from commands.corpus import prepared_for
from commands.dry_run import report_cost
from commands.fair_rate import with_fair_rate
from commands.initial_model import require_its_tokenizer, with_initial_model
from commands.model_of_run import describe_model, with_tokenizer
from commands.training_run import train_run
from data.prepared import PreparedData
from launch import sweep, terminal
from launch.failures import report_error
from launch.schemas import ROOT, TrainConfig
from measuring.windows import cache_context_for, windows_for
from modeling.accounting import match_cache
from modeling.arrangement import layer_configs
from tracking.run_folder import RunFolder
from training.ranks.joining import joined
from training.recipe.budget import make_budget
from training.summary import describe_in_short, describe_run


def main(config: TrainConfig) -> None:
    """Prepare the data if need be, then train, or resume, the run that the configuration names.

    Of several ranks that torchrun started, each calls this; rank 0 alone prepares, writes, prints.
    """
    layer_configs(config.model)
    initial = None
    if config.init_from is not None:
        config, initial = with_initial_model(Path(config.init_from).expanduser(), config)
    elif config.match == "cache":
        model = match_cache(config.model, config.match_cache_ratio, config.match_cache_context)
        config = dataclasses.replace(config, model=model)
    windows_for(config.eval, config.model)
    cache_context_for(config.eval, config.model)
    budget = make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    schedule = config.schedule
    warmup = schedule.warmup(budget.num_steps)
    # The number itself is recorded.
    config = dataclasses.replace(
        config, schedule=dataclasses.replace(schedule, warmup_steps=warmup)
    )
    run = RunFolder(config.runs_path, config.run_name)

    timeout = config.trainer.rank_timeout_seconds
    with joined(config.trainer.device, report_error, timeout) as world:
        world.share_of(budget.sequences_per_pass)
        if config.dry_run:
            report_cost(run, config, world)
            return
        folder = world.from_main(lambda: str(prepared_for(config).folder))
        prepared = PreparedData(Path(folder))
        if initial is not None:
            require_its_tokenizer(str(config.init_from), config.model, prepared)
        asked = config.model
        config = with_tokenizer(config, prepared)
        say = terminal.say if world.is_main else terminal.say_nothing
        if schedule.warmup_steps is None and warmup < schedule.warmup_at_most:
            say(
                f"warm-up: {warmup} step{'s' * (warmup != 1)} instead of "
                f"{schedule.warmup_at_most}, a tenth of the run's {budget.num_steps} "
                "(schedule.warmup_steps sets another)"
            )
        if config.fair_lr:
            config = with_fair_rate(config, prepared, world, say, initial)
        sheet = describe_model(asked, config.model)
        say_once = _say_unless_repeated if world.is_main else terminal.say_nothing
        summary, was_finished = train_run(run, config, prepared, world, say_once, sheet, initial)
        if was_finished:
            say(
                f"{config.run_name} is finished: validation perplexity "
                f"{summary['validation_perplexity']:.2f}; nothing to do "
                "(another run_name=... or seed=... trains another)"
            )
            return
        if sweep.current:
            say(describe_in_short(summary))
            return
        if world.is_main and config.trainer.sample_tokens > 0:
            terminal.say(f"sample:\n{run.read_sample()}\n", end="")
        is_default = run.path.parent == ROOT / "runs"
        arguments = [] if is_default else [f"runs_dir={config.runs_path}"]
        say(describe_run(summary, prepared.name, prepared.baselines, run.path, arguments))


def _say_unless_repeated(line: str) -> None:
    """Print a line that no other run of the same sweep has printed."""
    if not (sweep.current and sweep.current.is_repeated(line)):
        terminal.say(line)
