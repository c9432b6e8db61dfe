"""`trainer.max_minutes`: stop while there is still time to save."""

import contextlib
import time
from collections.abc import Iterator

import training

# Guessed for the first checkpoint, which is read back too; those after it are timed.
_BYTES_PER_SECOND = 2e8


class TimeLimit:
    """Counts from the start of the process: imports, data preparation and earlier runs included.

    Args:
        max_minutes: None never stops.
        checkpoint_bytes: What a checkpoint holds, roughly.
    """

    def __init__(self, max_minutes: float | None, checkpoint_bytes: int) -> None:
        self._max_minutes = max_minutes
        self._save_seconds = checkpoint_bytes / _BYTES_PER_SECOND

    @contextlib.contextmanager
    def timing_a_save(self) -> Iterator[None]:
        """While entered, a checkpoint is saved; the next one is expected to take as long."""
        begin = time.monotonic()
        yield
        self._save_seconds = time.monotonic() - begin

    def reason_to_stop(self, step_seconds: float) -> str | None:
        """Name the setting if one more step and a checkpoint are not likely to fit, else None.

        Args:
            step_seconds: How long the next step may take, and what comes between it and the next.
        """
        if self._max_minutes is None:
            return None
        end = time.monotonic() - training.STARTED_AT + step_seconds + self._save_seconds
        if end <= self._max_minutes * 60:
            return None
        return f"trainer.max_minutes={self._max_minutes:g}"
