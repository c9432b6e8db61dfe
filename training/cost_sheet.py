"""What a training takes in steps, time, memory, disk and download, in numbers and in words."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.batches import TrainingWindows
from data.prepared import PreparedData
from data.tokenizing.tokenizer import token_dtype
from files.disk import free_bytes
from files.sizes import in_units
from modeling.accounting import training_flops_per_token
from settings.data import DataSettings, TokenizerSettings
from settings.run import Recipe
from settings.training import TrainerSettings
from tracking.progress import in_words
from training.dry_run import TIMED_STEPS, Measured, Unprepared
from training.recipe.budget import TokenBudget, make_budget


@dataclass(frozen=True)
class Cost:
    """What a run costs from here to its end.

    Attributes:
        num_steps: Steps to come.
        num_tokens: Tokens of these.
        seconds: Estimated time of these, without validation, checkpoints and the end.
        disk_bytes: Of the checkpoints that it keeps.
    """

    num_steps: int
    num_tokens: int
    seconds: float
    disk_bytes: int

    def describe(self) -> str:
        """Spell it out in a line."""
        return (
            f"{self.num_steps:,} steps, {self.num_tokens:,} tokens, about {in_hours(self.seconds)} "
            f"here, {in_units(self.disk_bytes)} of checkpoints"
        )


def total(costs: Iterable[Cost]) -> Cost:
    """Return what several runs cost, one after another."""
    every = list(costs)
    return Cost(
        num_steps=sum(cost.num_steps for cost in every),
        num_tokens=sum(cost.num_tokens for cost in every),
        seconds=sum(cost.seconds for cost in every),
        disk_bytes=sum(cost.disk_bytes for cost in every),
    )


def cost_of(recipe: Recipe, budget: TokenBudget, first_step: int, measured: Measured) -> Cost:
    """Return what a run costs from a step on."""
    steps = budget.num_steps - first_step
    return Cost(
        num_steps=steps,
        num_tokens=steps * budget.tokens_per_step,
        seconds=steps * measured.seconds_per_step,
        disk_bytes=_num_checkpoints(recipe.trainer, budget, first_step) * measured.checkpoint_bytes,
    )


def describe(
    recipe: Recipe,
    corpus: PreparedData | Unprepared,
    data: DataSettings,
    tokenizer: TokenizerSettings,
    runs_path: Path,
    first_step: int,
    measured: Measured,
) -> list[str]:
    """Say what a run takes: tokens, time, memory, disk, download, a line each.

    Args:
        recipe: What would be trained.
        corpus: What was measured on.
        data: Its settings.
        tokenizer: Its settings, too.
        runs_path: The folder that the run's own would be in.
        first_step: Steps that the run has behind it.
        measured: From `measure`.
    """
    context = recipe.model.max_position_embeddings
    budget = make_budget(recipe.trainer, recipe.schedule, context)
    cost = cost_of(recipe, budget, first_step, measured)
    lines = [budget.describe()]
    if first_step:
        lines.append(f"a checkpoint of step {first_step} is there: {cost.num_steps:,} steps remain")
    if isinstance(corpus, PreparedData):
        windows = TrainingWindows(corpus.training_streams(), context, recipe.seed)
        lines.append(windows.describe(budget.num_distinct_tokens))
    else:
        lines.append(
            f"{corpus.name} is not prepared: timed on random tokens of a vocabulary of "
            f"{corpus.vocab_size:,}{', an assumption' * corpus.is_assumed}"
        )
    machine = measured.machine
    speed = budget.tokens_per_step / measured.seconds_per_step
    mfu = speed * training_flops_per_token(recipe.model, context) / machine.peak_flops
    each, free = measured.checkpoint_bytes, free_bytes(runs_path)
    needed = cost.disk_bytes + each
    return [
        *lines,
        f"time      {in_hours(cost.seconds)} of steps, without validation, checkpoints and the end",
        f"          {measured.seconds_per_step:.3g} s a step, the mean of {TIMED_STEPS}: "
        f"{speed:,.0f} tokens/s, MFU {mfu:.2f}, {machine.device}, {machine.dtype}",
        f"memory    {in_units(measured.peak_memory_bytes)} at the peak of these steps, optimizer "
        "state included",
        f"disk      {_num_checkpoints(recipe.trainer, budget, first_step)} checkpoints of "
        f"{in_units(each)}, one more while it is written: {in_units(needed)}; "
        f"{in_units(free)} are free{', too little' if free < needed else ''}",
        f"          {_size_of_data(corpus, data)}",
        "download  " + f"\n{10 * ' '}".join(_downloads(corpus, data, tokenizer) or ["nothing"]),
    ]


def in_hours(seconds: float) -> str:
    """Return a time in words, and in hours."""
    hours = seconds / 3600
    return f"{in_words(seconds)} ({hours:{',.0f' if hours >= 100 else '.2g'}} hours)"


def _num_checkpoints(trainer: TrainerSettings, budget: TokenBudget, first_step: int) -> int:
    """Count the checkpoints that are kept at the end: the newest, and the best one."""
    every = trainer.checkpoint_every_steps
    with_best = budget.keeps_a_best(every, trainer.eval_every_steps)
    return min(trainer.keep_last + with_best, max(1, budget.saves_after(first_step, every)))


def _size_of_data(corpus: PreparedData | Unprepared, data: DataSettings) -> str:
    """Say what the prepared corpus takes, as far as that is known."""
    if isinstance(corpus, PreparedData):
        files = [path for path in corpus.folder.rglob("*") if path.is_file()]
        size = in_units(sum(path.stat().st_size for path in files))
        return f"prepared data {size}, already there"
    wanted = [one.max_train_tokens for one in _corpora(data)]
    if None in wanted:
        return "prepared data of unknown size (data.max_train_tokens limits it)"
    num_bytes = sum(filter(None, wanted)) * token_dtype(corpus.vocab_size).itemsize
    return f"prepared data at most {in_units(num_bytes)}, and its validation split"


def _downloads(
    corpus: PreparedData | Unprepared, data: DataSettings, tokenizer: TokenizerSettings
) -> list[str]:
    """Name what the Hub would be asked for, a line each; nothing where the data is prepared."""
    if isinstance(corpus, PreparedData):
        return []
    found = []
    for one in _corpora(data):
        if one.source != "hub":
            continue
        configuration = f" {one.config_name}" if one.config_name else ""
        revision = f"revision {one.revision}" if one.revision else "the newest revision"
        how = "streamed" if one.streaming else "whole unless it is cached"
        found.append(f"{one.path}{configuration}, {revision}, {how}; size unknown")
    if tokenizer.kind == "pretrained" and not Path(str(tokenizer.path)).expanduser().is_dir():
        found.append(f"tokenizer {tokenizer.path}, a few MB unless it is cached")
    return found


def _corpora(data: DataSettings) -> list[DataSettings]:
    return list(data.corpora.values()) or [data]
