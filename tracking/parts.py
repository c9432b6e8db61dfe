"""Tensors of which every rank holds a part, in safetensors files that each rank writes.

PyTorch's distributed checkpointing does the work, with its safetensors storage: each file says in
its header where its parts belong, so that any number of ranks can read them, or one process alone.
Its usual storage adds a pickle to the tensors; this one adds nothing, and pickles nothing.
A group's files are named `<group>-shard-<number>.safetensors`.
"""

import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.disk import one_line, write_failure
from files.errors import RunError
from tracking.failures import is_lost_rank, is_out_of_memory

if TYPE_CHECKING:
    from torch.distributed.checkpoint import Metadata
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

SUFFIX = ".safetensors"
_SHARD = "-shard-"


def group_of(file_name: str) -> str:
    """Return the group whose tensors a file holds, whole or in part."""
    return file_name.removesuffix(SUFFIX).split(_SHARD)[0]


def is_part(file_name: str) -> bool:
    """Return whether a file holds parts of tensors."""
    return _SHARD in file_name


def write_parts(folder: Path, groups: dict[str, dict[str, Tensor]]) -> None:
    """Write this rank's parts; every rank has to call it.

    Args:
        folder: An existing folder that all ranks see. Rank 0 then calls `name_parts`.
        groups: DTensors, or tensors that are equal on all ranks, by group and name.

    Raises:
        RunError: If any rank cannot write; raised on all.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    if not folder.is_dir():
        raise RunError(
            f"{folder} does not exist on this machine; the runs folder has to be on a file system "
            "that all machines share"
        )
    for name, tensors in groups.items():
        writer = HuggingFaceStorageWriter(path=str(folder / name), save_distributed=True)
        try:
            save(tensors, storage_writer=writer)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise write_failure(folder / name, cause) from error


def name_parts(folder: Path, groups: Collection[str]) -> list[Path]:
    """Move what `write_parts` wrote into the folder itself, and return the files."""
    files = []
    for name in groups:
        for number, path in enumerate(sorted((folder / name).iterdir()), start=1):
            files.append(path.rename(folder / f"{name}{_SHARD}{number:05d}{SUFFIX}"))
        shutil.rmtree(folder / name)
    return files


def read_whole(files: Collection[Path]) -> dict[str, Tensor]:
    """Assemble the tensors of one group on the CPU, in one process.

    Args:
        files: All shards of the group, verified.

    Raises:
        RunError: If they cannot be read, or do not make up whole tensors.
    """
    folder = next(iter(files)).parent
    names: set[str] = set()
    for path in files:
        with reading(path), safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    tensors = {
        name: torch.empty(size, dtype=dtype)
        for name, (size, dtype) in shapes(folder).items()
        if name in names
    }
    _load(folder, tensors, alone=True)
    return tensors


def shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of each tensor of a checkpoint, sharded or not.

    Raises:
        RunError: If the files cannot be read, or do not make up whole tensors: what they say of
            themselves is checked, so that no more memory is asked for than they hold.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with reading(folder):
        metadata = HuggingFaceStorageReader(path=str(folder)).read_metadata()
        dtypes = _dtypes(metadata)
        found = {}
        for name, entry in metadata.state_dict_metadata.items():
            # There is nothing else in safetensors.
            assert isinstance(entry, TensorStorageMetadata)
            if dtypes[name] != {entry.properties.dtype} or not _is_whole(entry.size, entry.chunks):
                raise RunError(
                    f"{folder} is damaged: the parts of {name} do not make up one tensor"
                )
            found[name] = (entry.size, entry.properties.dtype)
    return found


def _dtypes(metadata: "Metadata") -> dict[str, set[torch.dtype]]:
    """Return the dtypes of all parts by the tensor's name."""
    found: dict[str, set[torch.dtype]] = {}
    for index, part in (metadata.storage_data or {}).items():
        found.setdefault(index.fqn, set()).add(part.dtype)
    return found


def _is_whole(size: torch.Size, parts: "list[ChunkStorageMetadata]") -> bool:
    """Return whether parts follow one another along the first dimension, as `write_parts` cuts."""
    if any(len(part.offsets) != len(part.sizes) or len(part.sizes) != len(size) for part in parts):
        return False
    if not size or 0 in size:
        return len(parts) == 1
    end = 0
    for part in sorted(parts, key=lambda part: part.offsets[0]):
        if any(part.offsets[1:]) or part.sizes[1:] != size[1:] or part.offsets[0] != end:
            return False
        end += part.sizes[0]
    return end == size[0]


def read_into(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors from a checkpoint, sharded or not; every rank has to call it.

    Args:
        folder: Of the checkpoint, verified.
        tensors: By name; of a DTensor this rank's part is filled, whatever the number of ranks
            that wrote it.

    Raises:
        RunError: If it does not hold them, or not in these shapes; raised on all ranks.
    """
    _load(folder, tensors, alone=False)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While entered, errors that a file causes in a library are reported as the file's fault.

    Args:
        path: The file, or the folder of several.

    Raises:
        RunError: In place of safetensors' errors and Python's own.
    """
    try:
        yield
    except RunError:
        raise
    except (
        *(SafetensorError, OSError, ArithmeticError, AssertionError, AttributeError),
        *(IndexError, KeyError, RuntimeError, TypeError, ValueError),
    ) as error:
        if is_out_of_memory(error) or is_lost_rank(error):
            raise
        raise RunError(f"cannot read {path}: {one_line(error)}") from error


def _load(folder: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    reader = HuggingFaceStorageReader(path=str(folder))
    try:
        with reading(folder), warnings.catch_warnings():
            # That this process reads for itself is what `alone` asks for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise RunError(f"cannot read {folder}: {one_line(cause)}") from error
