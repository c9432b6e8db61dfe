"""Checkpoints: tensors as safetensors, everything else as JSON; nothing is ever unpickled.

`<folder>/<step>/` holds one `<name>.safetensors` per group of tensors (or several, of which each
holds parts: `tracking.shards`), `state.json`, and `manifest.json`, written last. A checkpoint is
written in `<folder>/.tmp-<step>/`, synced to the disk and renamed, so a killed process or a full
disk never leaves half of one under its real name.
"""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from files.atomic import read_json, write_json
from files.disk import free_bytes, one_line, require_free_bytes, write_failure
from files.errors import RunError, WriteFailed
from files.plain_json import require_plain
from files.sizes import in_units
from files.synced import fsync_file, fsync_folder
from tracking.failures import is_lost_rank, is_out_of_memory
from tracking.manifest import FILE_NAME as MANIFEST_NAME
from tracking.manifest import read_manifest, verify_file, write_manifest
from tracking.notices import Say, to_stderr
from tracking.shards import SUFFIX as _SUFFIX
from tracking.shards import group_of, is_shard, name_shards, read_whole, reading

T = TypeVar("T", str, int, float, list[Any], dict[str, Any])
_STATE_NAME = "state.json"
_BEST_NAME = "best.json"
_STEP_FOLDER = re.compile(r"[0-9]{8,}")
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
# Headers, manifest, folders and rounding to blocks, on top of the tensors and the state.
_OVERHEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        path: Its folder.
        tensors: Tensors by group ("model", "optimizer", ...) and name.
        state: Plain JSON values.
    """

    step: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def value(self, key: str, kind: type[T]) -> T:
        """Return a value of the state.

        Args:
            key: Its place, such as "data.fingerprint".
            kind: The type that was saved.

        Raises:
            RunError: If it is missing or of another type.
        """
        found: Any = self.state
        for name in key.split("."):
            found = found.get(name) if type(found) is dict else None
        if type(found) is not kind:
            raise RunError(
                f"{self.path / _STATE_NAME} is damaged or another version's: {key} must be a "
                f"{kind.__name__}, not a {type(found).__name__}; choose another run_name, or "
                "remove the run's folder and train it again"
            )
        return found


class Shards(Protocol):
    """Tensors that several processes hold in parts.

    Attributes:
        groups: Tensors by group and name, of their whole shape.
    """

    groups: dict[str, dict[str, Tensor]]

    def write(self, folder: Path) -> None:
        """Have every process write its parts (`tracking.shards.write_shards`)."""
        ...


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
        self._verified_a_save = False

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        shards: Shards | None = None,
        *,
        is_best: bool = False,
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
            shards: Groups besides `tensors`, which several processes write.
            is_best: Keep it besides the last ones, in place of the one kept so before: the best by
                validation. `best.json` says so, from before it is there, so that no moment to be
                killed at loses either.

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
        sharded = shards.groups if shards else {}
        for name in [*tensors, *sharded]:
            if not _GROUP_NAME.fullmatch(name):
                raise ValueError(f"group {name!r} must be lower case letters, digits and _")
        require_plain(state, "state")
        self._require_no_link()
        final = self._path(step)
        temporary = self._folder / f".tmp-{step}"
        needed_bytes = _size_bytes({**tensors, **sharded}, state)
        try:
            # Without its parents: a run's folder that vanished would come back with half of it.
            self._folder.mkdir(exist_ok=True)
            self._remove_leftovers()
            require_free_bytes(self._folder, needed_bytes)
            self._write(temporary, step, tensors, state, shards)
            self._record_best(step, is_best=is_best)
            self._publish(temporary, final)
        except (OSError, SafetensorError) as error:
            raise write_failure(final, error, needed_bytes) from error
        finally:
            # Also when interrupted: the space is needed, and nothing else will be resumed from it.
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove(later for later in self._candidates() if later > step)
        self._prune()
        return final

    def require_room(
        self, tensors: dict[str, dict[str, Tensor]], num_saves: int, *, with_best: bool
    ) -> None:
        """Refuse a training whose checkpoints will not fit, before its first step.

        A checkpoint is written before an old one is removed, so there is one more than are kept.

        Args:
            tensors: As `save` will get them; only their shapes and dtypes count (meta tensors do).
            num_saves: To come.
            with_best: Whether one may be kept as the best in addition to the last ones.

        Raises:
            WriteFailed: With the bytes needed and free.
        """
        if num_saves < 1:
            return
        there = len(self.steps())
        count = max(1, min(self._keep_last + with_best + 1, there + num_saves) - there)
        each = _size_bytes(tensors, {})
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
        return [step for step in self._candidates() if (self._path(step) / MANIFEST_NAME).is_file()]

    def load_newest(
        self,
        device: str = "cpu",
        names: Collection[str] | None = None,
        *,
        verify_all: bool = False,
    ) -> Checkpoint | None:
        """Read the newest checkpoint that is intact.

        Each newer one that is damaged is reported through `say`, with the one used instead.

        Args:
            device: Where to put the tensors.
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
                if verify_all:
                    verify_checkpoint(self._path(step))
                checkpoint = read_checkpoint(self._path(step), device, names)
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

    def load(
        self, step: int, device: str = "cpu", names: Collection[str] | None = None
    ) -> Checkpoint:
        """Read the checkpoint of one step.

        Args:
            step: Its step.
            device: Where to put the tensors.
            names: Groups of tensors to read and verify; None reads all.

        Raises:
            RunError: If it does not exist or is damaged.
        """
        try:
            return read_checkpoint(self._path(step), device, names)
        except RunError as error:
            others = ", ".join(str(other) for other in self.steps() if other != step) or "none"
            raise RunError(f"{error}; other checkpoints: {others}") from error

    def protected_step(self) -> int | None:
        """Return the step of the best checkpoint, or None if there is none (any more).

        Raises:
            RunError: If its record cannot be read.
        """
        steps = self.steps()
        return next((step for step in self._recorded_best() if step in steps), None)

    def _recorded_best(self) -> list[int]:
        """Return what `best.json` says: the best, and the one before where that may be yet to come.

        Raises:
            RunError: If it cannot be read.
        """
        path = self._folder / _BEST_NAME
        if not path.is_symlink() and not path.exists():
            return []
        record = read_json(path)
        found = [record[key] for key in ("step", "before") if record.get(key) is not None]
        if not found or any(type(step) is not int for step in found):
            raise RunError(f"{path} is damaged: it must hold steps; delete it")
        return found

    def _record_best(self, step: int, *, is_best: bool) -> None:
        """Record whether the checkpoint that is about to get its name is the best.

        Of one that is not, nothing is to be recorded, unless a run that was killed before it had
        its name had recorded that it is.
        """
        try:
            best, recorded = self.protected_step(), self._recorded_best()
        except RunError as error:
            if not is_best:
                return  # said when the old ones are to be removed
            self._say(f"{error}; it is written anew")
            best, recorded = None, []
        if is_best:
            write_json(self._folder / _BEST_NAME, {"step": step, "before": best})
        elif recorded and recorded[0] == step != best:
            if best is None:
                _delete(self._folder / _BEST_NAME)
            else:
                write_json(self._folder / _BEST_NAME, {"step": best, "before": None})

    def _write(
        self,
        folder: Path,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        shards: Shards | None,
    ) -> None:
        """Write all files of a checkpoint, verify the first one, and sync them to the disk."""
        folder.mkdir()
        write_json(folder / _STATE_NAME, state)
        mode = (folder / _STATE_NAME).stat().st_mode
        for name, group in tensors.items():
            path = folder / f"{name}{_SUFFIX}"
            save_file(group, path)
            # safetensors makes its files private to the user; a run is shared like its other files.
            path.chmod(mode)
            fsync_file(path)
        if shards:
            shards.write(folder)
            for path in name_shards(folder, shards.groups):
                path.chmod(mode)
                fsync_file(path)
        if not self._verified_a_save:
            _compare(folder, tensors, state)
        write_manifest(folder, step)
        fsync_folder(folder)
        self._verified_a_save |= shards is None

    def _publish(self, temporary: Path, final: Path) -> None:
        """Give a finished checkpoint its name; an existing one of the same step steps aside."""
        aside = self._folder / f".old-{final.name}"
        if final.is_symlink() or final.exists():
            final.rename(aside)
        temporary.rename(final)
        fsync_folder(self._folder)
        _delete(aside)

    def _prune(self) -> None:
        """Remove all but the last complete ones and the best one."""
        try:
            best = self.protected_step()
        except RunError as error:
            self._say(f"{error}; no old checkpoint is removed while {_BEST_NAME} is unreadable")
            return
        keep = {*self.steps()[-self._keep_last :], best}
        self._remove(step for step in self._candidates() if step not in keep)

    def _remove(self, steps: Iterable[int]) -> None:
        """Remove checkpoints, each at once: by renaming it first, so that half of one never shows.

        A failure only costs space, so it is reported and the run goes on.
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
            elif not entry.name.startswith((".tmp-", f".{_BEST_NAME}.tmp-")):
                continue
            _delete(entry)

    def _candidates(self) -> list[int]:
        """Return the steps of everything named like a checkpoint, oldest first."""
        return sorted(
            int(entry.name)
            for entry in self._entries()
            if _STEP_FOLDER.fullmatch(entry.name) and entry.name == _folder_name(int(entry.name))
        )

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
        """Return the folder of a step."""
        return self._folder / _folder_name(step)


@contextmanager
def same_version(path: Path) -> Iterator[None]:
    """While entered, what a checkpoint lacks or has too much of is told as another version's.

    Args:
        path: The checkpoint, for the message.

    Raises:
        RunError: In place of Python's own errors, such as KeyError, that taking it apart raised.
    """
    try:
        yield
    except (
        *(ArithmeticError, AttributeError, IndexError),
        *(KeyError, RuntimeError, TypeError, ValueError),
    ) as error:
        # An error with a class of ours, or of a library, says for itself what is wrong.
        if type(error).__module__ != "builtins" or is_out_of_memory(error) or is_lost_rank(error):
            raise
        raise RunError(
            f"{path} was written by another version of kvlab ({one_line(error)}); choose another "
            "run_name, or remove the run's folder and train it again"
        ) from error


def read_checkpoint(
    path: Path, device: str = "cpu", names: Collection[str] | None = None
) -> Checkpoint:
    """Read and verify the checkpoint in a folder.

    Args:
        path: The folder of one checkpoint.
        device: Where to put the tensors.
        names: Groups of tensors to read and verify, such as ["model"]; None reads all.

    Raises:
        RunError: Naming the file, if anything is missing, changed or from another version.
    """
    manifest = read_manifest(path)
    files: dict[str, list[str]] = {}
    for listed in manifest.files:
        if listed.endswith(_SUFFIX):
            files.setdefault(group_of(listed), []).append(listed)
        # One flipped bit in a name here would otherwise make a whole group disappear.
        elif listed != _STATE_NAME:
            raise RunError(f"{path / MANIFEST_NAME} is damaged: it lists the file {listed}")
    tensors = {}
    for name in files if names is None else names:
        file_names = files.get(name, [f"{name}{_SUFFIX}"])
        for file_name in file_names:
            verify_file(path, manifest, file_name)
        if is_shard(file_names[0]):
            whole = read_whole([path / file_name for file_name in file_names])
            tensors[name] = {key: tensor.to(device) for key, tensor in whole.items()}
            continue
        with reading(path / file_names[0]):
            tensors[name] = load_file(path / file_names[0], device=device)
    return Checkpoint(manifest.step, path, tensors, read_state(path))


def verify_checkpoint(path: Path) -> None:
    """Verify every file of the checkpoint in a folder, without reading a tensor.

    Raises:
        RunError: Naming the file, if anything is missing, changed or from another version.
    """
    manifest = read_manifest(path)
    for name in manifest.files:
        verify_file(path, manifest, name)


def read_state(path: Path) -> dict[str, Any]:
    """Read and verify only the plain values of the checkpoint in a folder; no tensor is touched.

    Args:
        path: The folder of one checkpoint.

    Raises:
        RunError: Naming the file, if it is missing, changed or from another version.
    """
    verify_file(path, read_manifest(path), _STATE_NAME)
    return read_json(path / _STATE_NAME)


def _folder_name(step: int) -> str:
    """Return the name under which a step is saved; it sorts as the steps do."""
    return f"{step:08d}"


def _size_bytes(tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> int:
    """Estimate the size of a checkpoint from above; the state counts as its text form."""
    tensor_bytes = sum(
        tensor.numel() * tensor.element_size() + 200  # its entry in the header
        for group in tensors.values()
        for tensor in group.values()
    )
    return tensor_bytes + 2 * len(repr(state)) + _OVERHEAD_BYTES


def _compare(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Read the files back and compare them bit by bit with what they should hold.

    Raises:
        RunError: If anything differs.
    """
    if read_json(folder / _STATE_NAME) != state:
        raise RunError(f"{folder / _STATE_NAME} does not hold what was written; check the disk")
    for name, group in tensors.items():
        path = folder / f"{name}{_SUFFIX}"
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            if keys != set(group) or not all(
                _same_bits(file.get_tensor(key), group[key]) for key in keys
            ):
                raise RunError(f"{path} does not hold what was written; check disk and memory")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare as bytes, so that NaN equals itself and -0.0 differs from 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = (tensor.detach().cpu().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


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
