"""Ctrl-C and SIGTERM: finish the step, save, stop."""

import signal
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ignore_signals() -> None:
    """Take no signal any more: this process is ending, with a status of its own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class InterruptRequest:
    """While entered, remembers the first signal in `name`; a second one ends at once.

    Args:
        is_one_of_many: Of the ranks of torchrun, which asks the others to end as soon as one has.
            An exception that leaves the block ends this one: it is told before, not cut short.
    """

    def __init__(self, *, is_one_of_many: bool = False) -> None:
        self.name: str | None = None
        self._is_one_of_many = is_one_of_many
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self._is_one_of_many:
            ignore_signals()
        else:
            self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
