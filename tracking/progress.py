"""How far a long computation is: one line that fits the terminal, or a line a minute in a log."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from tqdm import tqdm

from guards.printable import printable

_BAR_COLUMNS = 6
"""Fewer show nothing; a piece of the text gives way instead."""
_USUAL_COLUMNS = 80
_AROUND_THE_BAR = len("100 %|| ")
_SECONDS_BETWEEN_DRAWINGS = 0.1


class Bar:
    """A progress bar on stderr, with text that is shortened to the width of the terminal.

    Where stderr is no terminal there is no bar. A bar with a name then prints a line every
    `log_every_seconds`, so that a log shows that the work is not stuck.

    Args:
        name: Of what is worked on; '' for work that prints lines of its own.
        is_shown: False for a process that prints nothing, such as a rank other than 0.
        log_every_seconds: Between the lines of a log.
    """

    def __init__(
        self, name: str = "", *, is_shown: bool = True, log_every_seconds: float = 60.0
    ) -> None:
        self._name = name
        self._is_shown = is_shown
        self._log_every_seconds = log_every_seconds
        self._logged_at = time.monotonic()
        self._drawn_at, self._drawn = 0.0, ""
        self._line: _Line | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.close()

    def show(self, done: float, total: float, *pieces: str) -> None:
        """Show how far the work is, unless that was done a moment ago.

        Args:
            done: Of the total; the total itself is shown at once.
            total: What `done` reaches.
            pieces: Said behind the bar, as many as fit: the first is kept longest, then the last.
                Where the first begins with another word than before, it is shown at once.
        """
        now = time.monotonic()
        if not self._is_shown:
            return
        if self._line is None:
            # disable=None: on a terminal only. It is one line, whatever the terminal's size.
            self._line = _Line(
                total=total, disable=None, leave=False, delay=1, ncols=_USUAL_COLUMNS, nrows=2
            )
            self._line.delay = 0  # only the first drawing, without its text, was to be spared
        if self._line.disable:
            if self._name and now - self._logged_at >= self._log_every_seconds:
                self._logged_at = now
                sys.stderr.write(printable(f"{self._name}: {', '.join(pieces)}") + "\n")
                sys.stderr.flush()
        elif (
            done == total
            or pieces[0].split()[0] != self._drawn
            or now - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS
        ):
            self._drawn_at, self._drawn = now, pieces[0].split()[0]
            self._line.n, self._line.total, self._line.pieces = done, total, pieces
            self._line.fit()
            self._line.refresh()

    def count(self, what: str, unit: str) -> Callable[[int, int], None]:
        """Return what shows a part of the work by its count, with an estimate of the time left.

        Args:
            what: Is done: "scoring", say.
            unit: Of what is counted: "tokens", say; '' if `what` names it.

        Returns:
            A function of the number done and the total; to be called with 0 first.
        """
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            left = (time.monotonic() - started) * (total - done) / done if done else None
            pieces = [f"{what} {done:,} of {total:,} {unit}".strip()]
            self.show(done, total, *pieces, *([] if left is None else [f"{in_words(left)} left"]))

        return show


class _Line(tqdm):
    """tqdm's bar, behind which stands what fits."""

    pieces: Sequence[str] = ()
    columns = _USUAL_COLUMNS
    monitor_interval = 0  # its thread redraws bars that are slow; ours say when

    def fit(self) -> None:
        """Take the width of the terminal at this moment; one without a size says 0."""
        # The last column stays free: some terminals wrap there.
        columns = (os.get_terminal_size(self.fp.fileno()).columns or _USUAL_COLUMNS) - 1
        if columns < self.columns:
            # It would fill up a line that is now too long with spaces.
            self.sp = self.status_printer(self.fp)
        self.ncols = self.columns = columns

    @property
    def format_dict(self) -> Any:
        """What tqdm lays out."""
        text = _fitting(self.pieces, self.columns - _AROUND_THE_BAR - _BAR_COLUMNS)
        text = text.replace("{", "{{").replace("}", "}}")
        return {**super().format_dict, "bar_format": "{percentage:3.0f} %|{bar}| " + text}


def _fitting(pieces: Sequence[str], columns: int) -> str:
    """Join the pieces that fit: the last but one gives way first, the first one last."""
    kept = list(pieces)
    while kept and len(", ".join(kept)) > columns:
        del kept[-2 if len(kept) > 2 else -1]
    return ", ".join(kept)


def in_words(seconds: float) -> str:
    """Say how long something takes, in its two largest units: 40 s, 4 min 10 s, 2 h 5 min."""
    total = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    index = next((i for i, (_, size) in enumerate(units) if total >= size), len(units) - 1)
    (unit, size), smaller = units[index], units[index + 1 : index + 2]
    words = f"{total // size} {unit}"
    for name, small in smaller:
        if rest := total % size // small:
            words += f" {rest} {name}"
    return words
