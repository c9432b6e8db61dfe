"""How fast a run goes, and how long it will still take."""

from collections import deque

RECENT_STEPS = 100


class Pace:
    """Wall-clock time of the recent steps, with all that happens between them.

    A step's time reaches from the end of the step before it to its own end, so that validation and
    checkpoints count. The first step of a process, which also warms up or compiles, counts only
    until there is a second one.

    The time that a step itself takes, without what happens between steps, is kept for the same
    steps: what tokens/s and MFU are computed from while a run trains.

    Args:
        first_step: Steps done before this process began.
        num_steps: Steps of the run.
        now: Seconds on the clock that `step_done` is given.
    """

    def __init__(self, first_step: int, num_steps: int, now: float) -> None:
        self._steps_done = first_step
        self._num_steps = num_steps
        self._last_end = now
        self._has_first_step_only = False
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._computing: deque[float] = deque(maxlen=RECENT_STEPS)

    def step_done(self, now: float, computing_seconds: float) -> None:
        """Note the end of a step.

        Args:
            now: Seconds on the clock.
            computing_seconds: Of them the step itself took so many.
        """
        is_first = not self._recent
        if self._has_first_step_only:
            self._recent.clear()
            self._computing.clear()
        self._has_first_step_only = is_first
        self._recent.append(now - self._last_end)
        self._computing.append(computing_seconds)
        self._last_end = now
        self._steps_done += 1

    @property
    def seconds_left(self) -> float:
        """Estimate of the time for the remaining steps: their number x the mean recent step.

        It knows nothing of what the recent steps did not have: the evaluation at the end, or a
        first validation. Call it after a step.
        """
        return (self._num_steps - self._steps_done) * sum(self._recent) / len(self._recent)

    @property
    def computing_seconds(self) -> float:
        """Mean time of a recent step, without what happens between steps. Call it after a step."""
        return sum(self._computing) / len(self._computing)

    @property
    def longest_step_seconds(self) -> float:
        """The longest recent step. Call it after a step."""
        return max(self._recent)
