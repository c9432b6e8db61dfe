"""One checkpoint: tensors as safetensors, everything else as JSON; nothing is ever unpickled.

A folder holds one `<name>.safetensors` per group of tensors (or several, each of which holds parts:
`tracking.parts`), `state.json`, and `manifest.json`, written last (`tracking.checkpoint_files`).
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from files.atomic import write_json
from files.disk import one_line
from files.errors import RunError
from files.synced import fsync_file, fsync_folder
from files.typed_json import read_typed, typed
from tracking.checkpoint_files import MANIFEST, list_files, listed_files, verify_file
from tracking.failures import is_lost_rank, is_out_of_memory
from tracking.parts import SUFFIX, group_of, is_part, name_parts, read_whole, reading

T = TypeVar("T")
Groups = Mapping[str, dict[str, Tensor]]
"""Tensors by group ("model", "optimizer", ...) and name."""
STATE = "state.json"
# Of a tensor, its entry in a file's header.
_HEADER_BYTES = 200
# Manifest, folders and rounding to blocks, on top of the tensors and the state.
_OVERHEAD_BYTES = 1 << 20
_TRY_AGAIN = "choose another run_name, or remove the run's folder and train it again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        path: Its folder.
        tensors: Tensors by group and name.
        state: Plain JSON values.
    """

    step: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def read(self, kind: type[T]) -> T:
        """Return the state, or what `kind` has of it, by its type (see `files.typed_json`).

        Raises:
            RunError: Naming the value that is missing or of another type.
        """
        try:
            return typed(self.state, kind, self.path / STATE)
        except RunError as error:
            raise RunError(f"{error}; it may be another version's: {_TRY_AGAIN}") from error

    def value(self, key: str, kind: type[T]) -> T:
        """Return one value of the state by its dotted key, such as "data.fingerprint".

        Raises:
            RunError: If it is missing or of another type.
        """
        names, shape = key.split("."), kind
        for name in reversed(names):
            shape = msgspec.defstruct("State", [(name, shape)])  # type: ignore[assignment]
        found: Any = self.read(shape)
        for name in names:
            found = getattr(found, name)
        return found


class Parts(Protocol):
    """Tensors of which several processes hold a part each.

    Attributes:
        groups: Tensors by group and name, of their whole shape.
    """

    groups: dict[str, dict[str, Tensor]]

    def write(self, folder: Path) -> None:
        """Have every process write its parts (`tracking.parts.write_parts`)."""
        ...


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Groups,
    state: dict[str, Any],
    parts: Parts | None,
    *,
    compare: bool,
) -> None:
    """Write all files of a checkpoint into a new folder and sync them to the disk.

    Args:
        folder: Is made.
        step: Optimizer steps done.
        tensors: Tensors by group and name.
        state: Plain JSON values.
        parts: More groups, which several processes write.
        compare: Read the whole tensors and the state back, and compare them bit by bit.

    Raises:
        OSError, SafetensorError: If a file cannot be written.
        RunError: If a file does not hold what was written.
    """
    folder.mkdir()
    write_json(folder / STATE, state)
    files = []
    for name, group in tensors.items():
        files.append(folder / f"{name}{SUFFIX}")
        save_file(group, files[-1])
    if parts:
        parts.write(folder)
        files += name_parts(folder, parts.groups)
    mode = (folder / STATE).stat().st_mode
    for path in files:
        # safetensors makes its files private to the user; a run is shared like its other files.
        path.chmod(mode)
        fsync_file(path)
    if compare:
        _compare(folder, tensors, state)
    list_files(folder, step)
    fsync_folder(folder)


def read_checkpoint(
    path: Path, names: Collection[str] | None = None, *, verify_all: bool = False
) -> Checkpoint:
    """Read and verify the checkpoint in a folder; its tensors are on the CPU.

    Args:
        path: The folder of one checkpoint.
        names: Groups of tensors to read and verify, such as ["model"]; None reads all.
        verify_all: Verify the groups that are not read, too.

    Raises:
        RunError: Naming the file, if anything is missing, changed or from another version.
    """
    manifest = listed_files(path)
    files: dict[str, list[str]] = {}
    for listed in manifest.files:
        if listed.endswith(SUFFIX):
            files.setdefault(group_of(listed), []).append(listed)
        # One flipped bit in a name here would otherwise make a whole group disappear.
        elif listed != STATE:
            raise RunError(f"{path / MANIFEST} is damaged: it lists the file {listed}")
    groups = files if names is None else names
    wanted = {name: files.get(name, [f"{name}{SUFFIX}"]) for name in groups}
    # All of them before any is read: PyTorch's reader does not say which file it stumbles over.
    for name in manifest.files if verify_all else [STATE, *itertools.chain(*wanted.values())]:
        verify_file(path, manifest, name)
    tensors = {}
    for name, file_names in wanted.items():
        if is_part(file_names[0]):
            tensors[name] = read_whole([path / file_name for file_name in file_names])
            continue
        with reading(path / file_names[0]):
            tensors[name] = load_file(path / file_names[0])
    return Checkpoint(manifest.step, path, tensors, read_typed(path / STATE, dict[str, Any]))


@contextmanager
def same_version(path: Path) -> Iterator[None]:
    """While entered, report what a checkpoint lacks or has too much of as another version's.

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
            f"{path} was written by another version of kvlab ({one_line(error)}); {_TRY_AGAIN}"
        ) from error


def checkpoint_bytes(tensor_bytes: Iterable[int], state: Mapping[str, Any] | None = None) -> int:
    """Estimate the size of a checkpoint from above; the state counts as its text form.

    Args:
        tensor_bytes: Of each tensor.
        state: Plain JSON values.
    """
    with_headers = sum(size + _HEADER_BYTES for size in tensor_bytes)
    return with_headers + 2 * len(repr(state)) + _OVERHEAD_BYTES


def _compare(folder: Path, tensors: Groups, state: dict[str, Any]) -> None:
    """Read the files back and compare them bit by bit with what they should hold.

    Raises:
        RunError: If anything differs.
    """
    if read_typed(folder / STATE, dict[str, Any]) != state:
        raise RunError(f"{folder / STATE} does not hold what was written; check the disk")
    for name, group in tensors.items():
        path = folder / f"{name}{SUFFIX}"
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
