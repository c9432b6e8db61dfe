"""Signals that ask a training to end: finish the step, save, stop."""

import signal
from types import FrameType
from typing import Any, Self

from training.machine.signals import SIGNALS, ignore_signals, leave


class StopAsked(Exception):
    """A signal came while something runs that has nothing to save; the message names it."""


class InterruptRequest:
    """While entered, remembers the first signal in `name`; Ctrl-C after it leaves at once.

    Other signals may come again and change nothing: schedulers send theirs twice, and have SIGKILL
    for a process that takes too long. A SIGHUP that is ignored, as under nohup, stays so, and so
    does what a launcher does at SIGUSR1 or SIGUSR2.

    Args:
        is_one_of_many: Of the ranks of torchrun, which asks the others to end as soon as one has.
            An exception that leaves the block ends this one: it is reported first, not cut short.
    """

    def __init__(self, *, is_one_of_many: bool = False) -> None:
        self.name: str | None = None
        self._is_one_of_many = is_one_of_many
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if number.name == "SIGHUP" and previous is signal.SIG_IGN:
                continue
            # A launcher's own, which has the job queued again, as submitit's.
            if number.name.startswith("SIGUSR") and callable(previous):
                continue
            self._previous[number] = previous
            signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self._is_one_of_many:
            ignore_signals()
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            leave(number, frame)
        self.name = self.name or signal.Signals(number).name
