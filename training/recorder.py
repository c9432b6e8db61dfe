"""What a training logs, validates and saves, step by step and at its end."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from data.batches import TrainingWindows
from measuring.kv_cache import measure_kv_cache, require_closed_form
from measuring.perplexity import Score
from measuring.windows import cache_context_for
from modeling.accounting import num_parameters, training_flops_per_token
from training.display import Display
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.interrupt import StopAsked
from training.endurance.resumption import Identity, Progress
from training.endurance.rng import rng_tensors
from training.endurance.stopping import Stopping
from training.endurance.time_limit import TimeLimit
from training.machine.pace import Pace
from training.machine.profile import profiled_steps
from training.machine.setup import Machine
from training.recipe.budget import TokenBudget
from training.run_log import RunLog
from training.summary import summarise
from training.validation import validate, write_sample


@dataclass(eq=False)
class Recorder:
    """Keeps a run's metrics, validations, checkpoints and summary; every rank has one.

    Args:
        log: Where everything but the checkpoints is written.
        identity: What is trained, on which data and by which software.
        machine: Where.
        budget: What the run spends.
        windows: What it trains on.
        progress: How far it is; counted here.
        checkpoints: Where it is saved.
    """

    log: RunLog
    identity: Identity
    machine: Machine
    budget: TokenBudget
    windows: TrainingWindows
    progress: Progress
    checkpoints: RunCheckpoints

    def __post_init__(self) -> None:
        self._trainer, budget = self.identity.recipe.trainer, self.budget
        self._world, model = self.checkpoints.world, self.identity.recipe.model
        self._display = Display(budget.num_steps, self.log.say, is_shown=self.log.is_main)
        self._num_parameters = num_parameters(model).total
        # Weights and two moments of each.
        self._time_limit = TimeLimit(self._trainer.max_minutes, 12 * self._num_parameters)
        self._stopping = Stopping(self._world, self._time_limit, self.progress, budget.num_steps)
        flops_per_token = training_flops_per_token(model, budget.tokens_per_sequence)
        self._mfu_per_speed = flops_per_token / self.machine.peak_flops

    @property
    def _is_last(self) -> bool:
        """Whether all steps are done."""
        return self.progress.step == self.budget.num_steps

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Begin the record, and end it.

        While entered, signals are remembered instead of ending the process: `save_or_stop` then
        saves and ends the training, and so it does when `trainer.max_minutes` are up.
        """
        progress, budget, log = self.progress, self.budget, self.log
        self._require_room()
        # A step whose validation is still to come is yet to be recorded.
        log.metrics.drop_after(progress.step - (progress.unfinished is not None))
        log.say(f"{log.name}: {self._num_parameters:,} parameters; {budget.describe()}")
        epochs = self.windows.describe(budget.num_distinct_tokens)
        log.say(f"{epochs}; {self.machine.device}, {self.machine.dtype}")
        now = time.perf_counter()
        self._started = now - progress.wall_seconds
        self._pace = Pace(progress.step, budget.num_steps, now)
        steps_left = budget.num_steps - progress.step
        is_profiled = self._trainer.profile and log.is_main
        folder, device = log.folder / "profile", self.machine.device
        profiling = profiled_steps(is_profiled, folder, steps_left, device, log.say)
        closing = contextlib.closing(log.metrics)
        with self._stopping, closing, self._display, profiling as self._profiled:
            yield

    def begin_step(self) -> None:
        """Take the time, from here to `end_step`."""
        self._world.step = self.progress.step + 1
        self._step_began = time.perf_counter()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time within as spent on waiting for data."""
        began = time.perf_counter()
        yield
        self.progress.data_seconds += time.perf_counter() - began

    def end_step(self, loss: float, grad_norm: float, rate: float) -> None:
        """Count a step whose update is made, and show what it measured.

        Args:
            loss: Of the step, before its update, in nats per token.
            grad_norm: Before clipping.
            rate: Learning rate.
        """
        progress = self.progress
        seconds = time.perf_counter() - self._step_began
        progress.step += 1
        progress.last_loss = loss
        progress.train_seconds += seconds
        progress.possible_flops += seconds * self.machine.peak_flops
        progress.wall_seconds = time.perf_counter() - self._started
        self._pace.step_done(time.perf_counter(), seconds)
        speed = self.budget.tokens_per_step / self._pace.computing_seconds
        progress.unfinished = {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700)),
            "train/learning_rate": rate,
            "train/grad_norm": grad_norm,
            "perf/tokens_per_second": speed,
            "perf/mfu": speed * self._mfu_per_speed,
            "progress/seconds_left": self._pace.seconds_left,
        }
        self._display.step(progress.step, progress.unfinished)

    def log_and_validate(self) -> float:
        """Log the last step, with a validation where one is due.

        Returns:
            The validation's nats per token; infinity if there was none, or a signal ended it: it
            is then made by the run that resumes.
        """
        nll = math.inf
        with contextlib.suppress(StopAsked):
            nll = self._conclude()
        self._profiled()
        return nll

    def finish_last_step(self) -> None:
        """Make the validation, and the record, that the run this one resumes did not reach.

        Raises:
            TrainingInterrupted: After a signal.
        """
        if self.progress.unfinished is None:
            return
        with self._stopping.ending():
            nll = self._conclude()
        if self._world.any(nll < self.progress.best_nll):
            self._note_best(nll)
            self.save(rng_tensors(self.machine.device))

    def save_or_stop(self, nll: float) -> None:
        """Save a checkpoint where one is due, at the end, and before the training has to stop.

        Args:
            nll: Of this step's validation; infinite if there was none.

        Raises:
            TrainingInterrupted: After a signal to any rank, or when time is up.
        """
        progress = self.progress
        # The evaluation at the end is made whatever the time.
        longest = None if self._is_last else self._pace.longest_step_seconds
        reason = self._stopping.reason(longest)
        is_due = progress.step % self._trainer.checkpoint_every_steps == 0
        if is_due or self._is_last or reason:
            if nll < progress.best_nll:
                self._note_best(nll)
            if self._is_last:
                self._display.phase("saving the last checkpoint")
            self.save(rng_tensors(self.machine.device))
            # It takes long enough for a signal to come.
            reason = reason or self._stopping.reason()
        if reason:
            raise self._stopping.interrupted(reason)

    def save(self, random_state: dict[str, Tensor]) -> None:
        """Save the state after the last whole step; every rank has to call it.

        Args:
            random_state: After that step, from `rng_tensors`.
        """
        progress = self.progress
        self.log.metrics.sync()
        with self._time_limit.timing_a_save():
            self._note_peak_memory()
            state = self.identity.state(progress)
            self.checkpoints.save(progress.step, state, random_state, progress.best_step)

    def finish(self) -> dict[str, Any]:
        """Measure the trained model, write a sample, and the summary last of all.

        Returns:
            What summary.json holds.

        Raises:
            EvaluationError: If the cache is not what its closed form says.
            TrainingInterrupted: After a signal.
        """
        with self._stopping.ending():
            summary = self._summary()
            self.log.mirror_summary(summary)
            self._write_sample()
            self._stopping.give_way()
        self.checkpoints.make_whole(self.progress.best_step)
        # Last: a run with a summary is a finished one.
        self.log.write_summary(summary)
        return summary

    def _require_room(self) -> None:
        """Refuse a training whose checkpoints will not fit on the disk, before its first step."""
        every = self._trainer.checkpoint_every_steps
        self.checkpoints.require_room(
            self.budget.saves_after(self.progress.step, every),
            with_best=self.budget.keeps_a_best(every, self._trainer.eval_every_steps),
        )

    def _conclude(self) -> float:
        """Validate the last step where that is due, and log it; return the nats, or infinity."""
        progress, trainer = self.progress, self._trainer
        measured = progress.unfinished
        assert measured is not None
        nll = math.inf
        record = measured if progress.step % trainer.log_every_steps == 0 or self._is_last else {}
        if progress.step % trainer.eval_every_steps == 0 and not self._is_last:
            score = self._validate(trainer.eval_tokens)
            nll = score.nll
            self._display.step(progress.step, measured)
            self._display.validation(progress.step, measured, score)
            record = record | {
                "validation/nll_part": nll,
                "validation/perplexity_part": score.perplexity,
            }
        if record:
            tokens_seen = progress.step * self.budget.tokens_per_step
            self.log.log(progress.step, tokens_seen, record)
        progress.unfinished = None
        return nll

    def _validate(self, max_tokens: int | None) -> Score:
        """Score the validation split, shown on the bar, and ended by a signal."""
        show = self._display.count("validating", "tokens")

        def watch(done: int, total: int) -> None:
            self._stopping.give_way()
            show(done, total)

        model, prepared = self.checkpoints.model, self.identity.prepared
        return validate(
            model, prepared, self.identity.recipe.eval, self.machine.device, max_tokens, watch
        )

    def _summary(self) -> dict[str, Any]:
        """Measure the trained model: the whole validation split, and its KV cache."""
        model = self.checkpoints.model
        score = self._validate(None)
        model.eval()
        self._display.phase("measuring the KV cache")
        settings, name = self.identity.recipe.eval, self.log.name
        context = cache_context_for(settings, model.config)
        cache = measure_kv_cache(model, settings.cache_batch_size, context)
        require_closed_form(name, cache)
        self._note_peak_memory()
        return {
            "run_name": name,
            **summarise(self.identity, self.budget, self.progress, score, cache),
            "tokens_dropped": self.windows.tokens_dropped,
            "finished": True,
        }

    def _write_sample(self) -> None:
        """Write what the trained model makes of a prompt."""
        trainer = self._trainer
        if trainer.sample_tokens < 1:
            return
        self._display.phase("writing a sample")
        model, prepared = self.checkpoints.model, self.identity.prepared
        asked, length = trainer.sample_prompt, trainer.sample_tokens
        sample = write_sample(model, prepared, asked, length, self.identity.recipe.sampling)
        self.log.write_sample(sample)

    def _note_best(self, nll: float) -> None:
        """Let the checkpoint that is saved next be kept as the best."""
        self.progress.best_nll, self.progress.best_step = nll, self.progress.step

    def _note_peak_memory(self) -> None:
        peak = self.machine.peak_memory_bytes()
        self.progress.peak_memory_bytes = max(self.progress.peak_memory_bytes, peak)
