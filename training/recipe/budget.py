"""The only place that converts between tokens, sequences and steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from settings.training import ScheduleSettings, TrainerSettings
from training.errors import TrainingError


@dataclass(frozen=True)
class TokenBudget:
    """What a run spends.

    Args:
        tokens_per_sequence: The context length.
        sequences_per_pass: Sequences in one forward and backward pass.
        passes_per_step: Passes per optimizer step.
        num_steps: Optimizer steps.
        distinct_steps: Steps after which the same sequences come again; None never repeats them.
    """

    tokens_per_sequence: int
    sequences_per_pass: int
    passes_per_step: int
    num_steps: int
    distinct_steps: int | None = None

    @property
    def sequences_per_step(self) -> int:
        """Sequences per optimizer step."""
        return self.sequences_per_pass * self.passes_per_step

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.sequences_per_step * self.tokens_per_sequence

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.num_steps * self.tokens_per_step

    def saves_after(self, step: int, every: int) -> int:
        """Return how many saves are to come after a step: every so many, and at the end."""
        if step >= self.num_steps:
            return 0
        return self.num_steps // every - step // every + bool(self.num_steps % every)

    def keeps_a_best(self, save_every: int, validate_every: int) -> bool:
        """Return whether a checkpoint may be kept as the best: some are validated when saved."""
        return math.lcm(save_every, validate_every) < self.num_steps

    @property
    def num_distinct_tokens(self) -> int:
        """Tokens of the run, without those that come again."""
        return min(self.num_steps, self.distinct_steps or self.num_steps) * self.tokens_per_step

    def first_sequence(self, step: int, accumulation_index: int) -> int:
        """Return the global index of the first sequence of a pass; steps count from 0."""
        if self.distinct_steps is not None:
            step %= self.distinct_steps
        return step * self.sequences_per_step + accumulation_index * self.sequences_per_pass

    def first_sequences(self, step: int) -> Iterator[int]:
        """Yield the global index of the first sequence of each pass, from a step to the end."""
        for later in range(step, self.num_steps):
            for index in range(self.passes_per_step):
                yield self.first_sequence(later, index)

    def describe(self) -> str:
        """Spell the arithmetic out."""
        again = f", the first {self.num_distinct_tokens:,} again and again"
        return (
            f"{self.num_steps} steps x {self.passes_per_step} x {self.sequences_per_pass} "
            f"sequences x {self.tokens_per_sequence} tokens = {self.num_tokens:,} tokens"
            f"{'' if self.distinct_steps is None else again}"
        )


def make_budget(
    trainer: TrainerSettings, schedule: ScheduleSettings, context_length: int
) -> TokenBudget:
    """Turn a number of tokens into whole steps, rounding up.

    Args:
        trainer: Tokens, batch and accumulation.
        schedule: Its warm-up has to fit.
        context_length: Tokens per sequence.

    Raises:
        TrainingError: If the warm-up is not shorter than the run.
    """
    per_step = trainer.micro_batch_size * trainer.gradient_accumulation_steps * context_length
    budget = TokenBudget(
        tokens_per_sequence=context_length,
        sequences_per_pass=trainer.micro_batch_size,
        passes_per_step=trainer.gradient_accumulation_steps,
        num_steps=-(-trainer.max_tokens // per_step),
        distinct_steps=trainer.overfit_batches,
    )
    if schedule.warmup(budget.num_steps) >= budget.num_steps:
        raise TrainingError(
            f"schedule.warmup_steps ({schedule.warmup_steps}) must be below the run's "
            f"{budget.num_steps} steps (trainer.max_tokens={trainer.max_tokens} at {per_step} "
            f"tokens a step); set schedule.warmup_steps={budget.num_steps // 10}, leave it "
            "out (it is then at most a tenth of the run) or raise trainer.max_tokens"
        )
    return budget
