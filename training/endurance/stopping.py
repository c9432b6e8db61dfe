"""When a training stops before its last step, and what it then says."""

import contextlib
from collections.abc import Iterator

from training.endurance.interrupt import InterruptRequest, StopAsked
from training.endurance.resumption import Progress
from training.endurance.time_limit import TimeLimit
from training.errors import TrainingInterrupted
from training.ranks.world import World


class Stopping(InterruptRequest):
    """While entered, a signal to any rank is a reason to stop, as is `trainer.max_minutes`.

    Args:
        world: The ranks, which stop together.
        time_limit: When time is up.
        progress: How far the run is.
        num_steps: Of the run.
    """

    def __init__(
        self, world: World, time_limit: TimeLimit, progress: Progress, num_steps: int
    ) -> None:
        super().__init__(is_one_of_many=world.size > 1)
        self._world = world
        self._time_limit = time_limit
        self._progress = progress
        self._num_steps = num_steps

    def reason(self, next_step_seconds: float | None = None) -> str | None:
        """Return why to stop, the same on all ranks; None to train on.

        Args:
            next_step_seconds: How long the next step may take; None if there is time for it.
        """
        too_late = None
        if next_step_seconds is not None:
            too_late = self._time_limit.reason_to_stop(next_step_seconds)
        return self._world.first_reason(self.name or too_late)

    def give_way(self) -> None:
        """End what can be done again, once a signal asks for it.

        Raises:
            StopAsked: On every rank, if any has had a signal.
        """
        if reason := self.reason():
            raise StopAsked(reason)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """End the training where what is done within gives way; its last step is saved.

        Raises:
            TrainingInterrupted: In place of `StopAsked`.
        """
        try:
            yield
        except StopAsked as asked:
            raise self.interrupted(asked) from None

    def interrupted(self, reason: object) -> TrainingInterrupted:
        """Say that the run was stopped after its last checkpoint, and that a rerun resumes it."""
        step = self._progress.step
        if step == self._num_steps:
            return TrainingInterrupted(
                f"{reason}: all {step} steps are saved; rerun the same command to finish"
            )
        return TrainingInterrupted(
            f"{reason}: checkpoint saved at step {step} of {self._num_steps}; rerun the same "
            "command to resume"
        )
