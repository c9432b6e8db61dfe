"""A step that fails: save what is safe, and say what to change."""

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from files.disk import one_line
from files.errors import RunError
from settings.training import TrainerSettings
from tracking.failures import is_out_of_memory
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.resumption import Progress
from training.endurance.rng import rng_tensors
from training.errors import TrainingDiverged, TrainingFailed
from training.recipe.budget import TokenBudget


class Recording(Protocol):
    """What a rescue needs to know of a run, and how it saves (see `training.recorder`)."""

    progress: Progress
    budget: TokenBudget
    checkpoints: RunCheckpoints

    def save(self, random_state: dict[str, Tensor]) -> None:
        """Save the state after the last whole step, with a random state."""
        ...


@dataclass(eq=False)
class Rescue:
    """While entered, running out of memory ends in one line, after a checkpoint where one is safe.

    The loop says where it is: `computing` gradients leaves the weights as they were, `updating`
    may have touched some of them when it fails, and `watching` (validation) touches nothing.
    Running out of memory, one rank of several cannot save without the others; losses that are not
    finite all see.

    Args:
        recording: The run, by its last whole step.
        trainer: For the advice.
        learning_rate: The peak, for the advice.
        broken_parameter: Names the first that is not finite on any rank, if all call it.
    """

    recording: Recording
    trainer: TrainerSettings
    learning_rate: float
    broken_parameter: Callable[[], str | None]

    def __post_init__(self) -> None:
        self._progress, self._budget = self.recording.progress, self.recording.budget
        self._checkpoints = self.recording.checkpoints
        self._ranks = self._checkpoints.world.size
        self._device = self._checkpoints.world.device
        self.watching()

    def computing(self) -> None:
        """A step begins."""
        self._doing = "computing gradients"
        # The failing step may draw random numbers before it fails; repeating it draws them again.
        self._random_state = rng_tensors(self._device)

    def updating(self) -> None:
        """The optimizer changes the weights now."""
        self._doing = "updating the weights"

    def watching(self) -> None:
        """The step is done."""
        self._doing = "evaluating"

    def require_finite(self, loss: float, norm: float) -> None:
        """Refuse to update the weights by gradients that are no numbers.

        Raises:
            TrainingDiverged: If the loss or the norm of the gradients is not finite.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise TrainingDiverged(
            f"step {self._progress.step + 1} ({self._sequences()}): the loss is {loss} and the "
            f"gradient norm {norm}, so training stopped before the weights were touched; "
            f"{self._save_what_is_safe(together=True)}; {self._what_to_lower()}"
        )

    def require_finite_weights(self) -> None:
        """Refuse to continue with, or to save, what a step has made of the weights.

        Raises:
            TrainingDiverged: If some are infinite or NaN.
        """
        if (broken := self.broken_parameter()) is None:
            return
        raise TrainingDiverged(
            f"step {self._progress.step + 1} ({self._sequences()}) made weights infinite or NaN, "
            f"first those of {broken}, and nothing was saved; there is {self._checkpoint()}; "
            f"{self._what_to_lower()}"
        )

    def _sequences(self) -> str:
        """Name the data of the step at hand."""
        step, budget = self._progress.step, self._budget
        first = budget.first_sequence(step, 0)
        return (
            f"training sequences {first} to {first + budget.sequences_per_step - 1}, after "
            f"{step * budget.tokens_per_step:,} tokens"
        )

    def _what_to_lower(self) -> str:
        other = "" if self.trainer.precision == "float32" else ", or set trainer.precision=float32"
        return (
            "the same command would fail at the same step: lower optim.learning_rate "
            f"({self.learning_rate:g}) or trainer.max_grad_norm ({self.trainer.max_grad_norm:g})"
            f"{other}, and give the run another run_name"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: Any) -> None:
        if error is None or not is_out_of_memory(error):
            return
        # The activations, which the frames of the failed call still hold, before anything is saved.
        traceback.clear_frames(trace)
        step = self._progress.step + (self._doing != "evaluating")
        raise TrainingFailed(
            f"out of memory in step {step} while {self._doing} ({one_line(error)}); "
            f"{self._save_what_is_safe(together=self._ranks == 1)}; {self._advice()}"
        ) from error

    def _save_what_is_safe(self, *, together: bool) -> str:
        """Save the state after the last whole step if it is known and worth it; say what there is.

        `together` says that all ranks are here, each of which has a part in saving.

        Before the first step there is nothing to lose, and a checkpoint would tie the run to the
        configuration that failed.
        """
        step, there = self._progress.step, self._checkpoint()
        if step in self._checkpoints.store.steps() or step == 0:
            return f"there is {there}"
        if self._doing == "updating the weights":
            return f"some weights may have changed, so nothing was saved; there is {there}"
        if not together:
            return f"nothing was saved, as the other ranks did not fail; there is {there}"
        if broken := self.broken_parameter():
            return (
                f"nothing was saved, as weights of {broken} are infinite or NaN; there is {there}"
            )
        self._checkpoints.model.zero_grad(set_to_none=True)
        try:
            self.recording.save(
                rng_tensors(self._device) if self._doing == "evaluating" else self._random_state
            )
        except (RunError, OSError, RuntimeError, MemoryError) as error:
            return f"the state could not be saved ({one_line(error)}); there is {there}"
        return f"the state after step {step} is saved"

    def _checkpoint(self) -> str:
        """Name the newest checkpoint that a rerun would find."""
        kept = [
            number for number in self._checkpoints.store.steps() if number <= self._progress.step
        ]
        return f"a checkpoint of step {kept[-1]}" if kept else "no checkpoint yet"

    def _advice(self) -> str:
        if self._doing == "evaluating":
            return "lower eval.batch_size or eval.cache_batch_size and run the command again"
        trainer = self.trainer
        size, passes = trainer.micro_batch_size, trainer.gradient_accumulation_steps
        share = size // self._ranks  # of a rank, in each pass
        is_off = not trainer.activation_checkpointing
        or_else = "; or set trainer.activation_checkpointing=true" if is_off else ""
        if share == 1:
            each = "" if self._ranks == 1 else f", one sequence a rank for {self._ranks} ranks,"
            return (
                f"trainer.micro_batch_size is {size}{each} already: take a smaller model or a "
                f"shorter context (model.*, another run_name){or_else}"
            )
        factor = next(number for number in range(2, share + 1) if share % number == 0)
        return (
            f"lower trainer.micro_batch_size ({size}) and raise "
            f"trainer.gradient_accumulation_steps ({passes}) by the same factor: with "
            f"trainer.micro_batch_size={size // factor} "
            f"trainer.gradient_accumulation_steps={passes * factor} this run resumes with the same "
            f"sequences per step, equal but for rounding and dropout{or_else}"
        )
