"""The checkpoints of one run: the last few and the best, each whole or not there.

A checkpoint is written in `<folder>/.tmp-<step>/`, synced to the disk and renamed to
`<folder>/<step>/`, so a killed process or a full disk never leaves half of one under its real name.
"""

import re
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from files.atomic import require_plain
from files.disk import free_bytes, one_line, require_free_bytes, write_failure
from files.errors import RunError, WriteFailed
from files.sizes import in_units
from files.synced import fsync_folder
from tracking.checkpoint import (
    Checkpoint,
    Groups,
    Parts,
    checkpoint_bytes,
    read_checkpoint,
    write_checkpoint,
)
from tracking.checkpoint_files import MANIFEST
from tracking.notices import Say, to_stderr

_STEP_FOLDER = re.compile(r"[0-9]{8,}")
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")


class CheckpointStore:
    """The checkpoints of one run: the last few and the best.

    Only one process may save to a folder (see `RunFolder.lock`); a process that only reads a run
    which another may be training must pass `read_only=True`.

    Args:
        folder: Folder of all checkpoints; created at the first save.
        keep_last: Number of newest checkpoints to keep; at least 1.
        say: Receives one line for each thing that the user should know.
        read_only: Never remove leftovers of an interrupted save, and refuse to save.

    Raises:
        ValueError: If `keep_last` is less than 1.
    """

    def __init__(
        self, folder: Path, keep_last: int, say: Say = to_stderr, *, read_only: bool = False
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last ({keep_last}) must be at least 1")
        self._folder = folder
        self._keep_last = keep_last
        self._say = say
        self._read_only = read_only
        self._compared_a_save = False

    def save(
        self,
        step: int,
        tensors: Groups,
        state: dict[str, Any],
        parts: Parts | None = None,
        *,
        best: int | None = None,
    ) -> Path:
        """Write a checkpoint and remove those that are no longer kept.

        The first whole one of a process is read back and compared. Checkpoints of later steps,
        which exist after an older one was resumed, are removed: the run has taken another course.

        Args:
            step: Optimizer steps done.
            tensors: Tensors by group and name. Each must be contiguous and no two of a group may
                share memory (safetensors refuses both): leave out one of two tied weights.
            state: Plain JSON values (see `require_plain`); large random states fit better among
                the tensors, as uint8.
            parts: More groups, which several processes write.
            best: Step of the checkpoint with the best validation, this one or an earlier one, which
                is kept in addition to the last ones.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: If the folder is a link.
            WriteFailed: If it cannot be written, naming the path, and the needed and free bytes
                where space is the cause. Earlier checkpoints are untouched.
            TypeError: If `state` holds anything else, naming the key path.
            ValueError: If a group's name, the step or a tensor is not allowed.
        """
        if self._read_only:
            raise RunError(f"{self._folder} was opened for reading; it cannot be saved to")
        if step < 0:
            raise ValueError(f"step ({step}) must not be negative")
        everything = {**tensors, **(parts.groups if parts else {})}
        for name in everything:
            if not _GROUP_NAME.fullmatch(name):
                raise ValueError(f"group {name!r} must be lower case letters, digits and _")
        require_plain(state, "state")
        self._require_no_link()
        final = self._path(step)
        temporary = self._folder / f".tmp-{step}"
        sizes = (t.numel() * t.element_size() for g in everything.values() for t in g.values())
        needed_bytes = checkpoint_bytes(sizes, state)
        compare = not self._compared_a_save
        try:
            # Without its parents: a run's folder that vanished would come back with half of it.
            self._folder.mkdir(exist_ok=True)
            self._remove_leftovers()
            require_free_bytes(self._folder, needed_bytes)
            write_checkpoint(temporary, step, tensors, state, parts, compare=compare)
            self._compared_a_save |= parts is None
            self._publish(temporary, final)
        except (OSError, SafetensorError) as error:
            raise write_failure(final, error, needed_bytes) from error
        finally:
            # Also when interrupted: the space is needed, and nothing else will be resumed from it.
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove(later for later in self._candidates() if later > step)
        keep = {*self.steps()[-self._keep_last :], best}
        self._remove(old for old in self._candidates() if old not in keep)
        return final

    def require_room(self, each: int, num_saves: int, *, with_best: bool) -> None:
        """Refuse a training whose checkpoints will not fit, before its first step.

        A checkpoint is written before an old one is removed, so there is one more than are kept.

        Args:
            each: Bytes of a checkpoint.
            num_saves: To come.
            with_best: Whether one may be kept as the best in addition to the last ones.

        Raises:
            WriteFailed: With the bytes needed and free.
        """
        if num_saves < 1:
            return
        there = len(self.steps())
        count = max(1, min(self._keep_last + with_best + 1, there + num_saves) - there)
        free = free_bytes(self._folder.parent)
        if free >= count * each:
            return
        fewer = f"set trainer.keep_last=1 (now {self._keep_last}), " if self._keep_last > 1 else ""
        raise WriteFailed(
            f"not enough disk space in {self._folder.parent}: {in_units(count * each)} needed for "
            f"{count} checkpoint{'s' * (count > 1)} of {in_units(each)}, {in_units(free)} free; "
            f"free some space, {fewer}or set runs_dir to a folder on another disk"
        )

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first; damage is not looked for."""
        return [step for step in self._candidates() if (self._path(step) / MANIFEST).is_file()]

    def load_newest(
        self, names: Collection[str] | None = None, *, verify_all: bool = False
    ) -> Checkpoint | None:
        """Read the newest checkpoint that is intact.

        Each newer one that is damaged is reported through `say`, with the one used instead.

        Args:
            names: Groups of tensors to read and verify; None reads all.
            verify_all: Verify the groups that are not read, too.

        Returns:
            The checkpoint, or None if there is none at all.

        Raises:
            RunError: If there are checkpoints and all of them are damaged.
        """
        if not self._read_only:
            self._remove_leftovers()
        damage: list[str] = []
        for step in reversed(self._candidates()):
            try:
                checkpoint = read_checkpoint(self._path(step), names, verify_all=verify_all)
            except RunError as error:
                damage.append(str(error))
                continue
            for line in damage:
                self._say(f"{line}; using the older checkpoint {checkpoint.path} instead")
            return checkpoint
        if damage:
            raise RunError(
                f"no checkpoint in {self._folder} can be used: {'; '.join(damage)}; delete or "
                "rename that folder to start the run again"
            )
        return None

    def load(self, step: int, names: Collection[str] | None = None) -> Checkpoint:
        """Read the checkpoint of one step.

        Args:
            step: Its step.
            names: Groups of tensors to read and verify; None reads all.

        Raises:
            RunError: If it does not exist or is damaged.
        """
        try:
            return read_checkpoint(self._path(step), names)
        except RunError as error:
            others = ", ".join(str(other) for other in self.steps() if other != step) or "none"
            raise RunError(f"{error}; other checkpoints: {others}") from error

    def _publish(self, temporary: Path, final: Path) -> None:
        """Give a finished checkpoint its name; an existing one of the same step steps aside."""
        aside = self._folder / f".old-{final.name}"
        if final.is_symlink() or final.exists():
            final.rename(aside)
        temporary.rename(final)
        fsync_folder(self._folder)
        _delete(aside)

    def _remove(self, steps: Iterable[int]) -> None:
        """Remove checkpoints, each at once: by renaming it first, so that half of one never shows.

        A failure only costs space, so it is reported and the run continues.
        """
        for step in list(steps):
            path = self._path(step)
            doomed = self._folder / f".tmp-removed-{step}"
            try:
                path.rename(doomed)
                _delete(doomed)
            except OSError as error:
                self._say(f"cannot remove the old checkpoint {path}: {one_line(error)}")

    def _remove_leftovers(self) -> None:
        """Remove what an interrupted save left, after putting back what it had set aside."""
        for entry in self._entries():
            if entry.name.startswith(".old-"):
                original = self._folder / entry.name.removeprefix(".old-")
                if not original.exists():
                    try:
                        entry.rename(original)
                    except OSError as error:
                        raise write_failure(original, error) from error
                    continue
            elif not entry.name.startswith(".tmp-"):
                continue
            _delete(entry)

    def _candidates(self) -> list[int]:
        """Return the steps of everything named like a checkpoint, oldest first."""
        names = [entry.name for entry in self._entries() if _STEP_FOLDER.fullmatch(entry.name)]
        return sorted(int(name) for name in names if name == self._path(int(name)).name)

    def _entries(self) -> list[Path]:
        """Return what is in the folder, sorted; nothing where there is none.

        Raises:
            RunError: If it is a link, through which files elsewhere could be removed, or cannot be
                read.
        """
        self._require_no_link()
        try:
            return sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read {self._folder}: {one_line(error)}") from error

    def _require_no_link(self) -> None:
        if self._folder.is_symlink():
            raise RunError(
                f"{self._folder} is a symbolic link; move the folder that it leads to into its "
                "place, or make the folder of all runs the link"
            )

    def _path(self, step: int) -> Path:
        """Return the folder of a step; the names sort as the steps do."""
        return self._folder / f"{step:08d}"


def _delete(path: Path) -> None:
    """Delete a folder, or a file or link in its place, if it is there.

    What cannot be deleted now, such as files still open on a network disk, is tried again at the
    next save.
    """
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
