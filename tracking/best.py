"""Which checkpoint is the best, in a file next to the checkpoints."""

from collections.abc import Collection
from pathlib import Path

import msgspec

from files.atomic import write_json
from files.errors import RunError
from files.typed_json import read_typed
from tracking.checkpoint_files import Count
from tracking.notices import Say

NAME = "best.json"


class _Best(msgspec.Struct):
    """The step of the best checkpoint, and of the one before while that may be yet to come."""

    step: Count
    before: Count | None = None


class BestRecord:
    """`best.json` in a folder of checkpoints.

    A checkpoint is recorded as the best before it has its name, along with the best one until then,
    so that a process killed at any moment loses neither.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def step(self, steps: Collection[int]) -> int | None:
        """Return the best of the checkpoints that there are; None if it is not among them.

        Raises:
            RunError: If the record is there and cannot be read.
        """
        found = self._read()
        both = (found.step, found.before) if found else ()
        return next((step for step in both if step in steps), None)

    def record(self, step: int, steps: Collection[int], say: Say, *, is_best: bool) -> None:
        """Record whether the checkpoint that is about to get its name is the best.

        One that is not needs no record, unless a run that was killed before it had its name had
        recorded that it is.

        Args:
            step: Of the checkpoint to come.
            steps: Of those that there are.
            say: Receives a line if a record that cannot be read is replaced.
            is_best: Whether the one to come is the best.
        """
        try:
            recorded, best = self._read(), self.step(steps)
        except RunError as error:
            if not is_best:
                return  # reported when the old ones are to be removed
            say(f"{error}; it is replaced")
            recorded = best = None
        if is_best:
            write_json(self._path, {"step": step, "before": best})
        elif recorded and recorded.step == step != best:
            if best is None:
                self._path.unlink(missing_ok=True)
            else:
                write_json(self._path, {"step": best, "before": None})

    def _read(self) -> _Best | None:
        if not self._path.is_symlink() and not self._path.exists():
            return None
        return read_typed(self._path, _Best)
