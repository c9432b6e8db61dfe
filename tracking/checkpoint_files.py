"""The files of a checkpoint: what belongs to it, and whether it is still what was written.

Neither safetensors nor JSON notices a flipped bit, so `manifest.json` lists every file with its
size and sha256. It is written last; a folder without one is not a checkpoint.
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Any

import msgspec

from files.atomic import write_json
from files.disk import one_line
from files.errors import RunError
from files.regular_file import require_regular_file, sha256_of_file
from files.typed_json import read_typed, typed
from guards.printable import printable

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
Count = Annotated[int, msgspec.Meta(ge=0)]
# A name that cannot leave the folder.
_FileName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")


class _Versioned(msgspec.Struct):
    format_version: int


class ListedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and hexadecimal sha256 of a file."""

    size: Count
    sha256: _Sha256


class CheckpointFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint consists of, as its manifest says.

    Attributes:
        format_version: Of the manifest.
        step: Optimizer steps done when it was written.
        files: By name.
    """

    format_version: int
    step: Count
    files: dict[_FileName, ListedFile]


def list_files(folder: Path, step: int) -> None:
    """Write a manifest of every file in the folder.

    Raises:
        RunError: If it cannot be written.
    """
    files = {
        path.name: ListedFile(path.stat().st_size, sha256_of_file(path))
        for path in sorted(folder.iterdir())
    }
    manifest = CheckpointFiles(FORMAT_VERSION, step, files)
    write_json(folder / MANIFEST, msgspec.to_builtins(manifest))


def listed_files(folder: Path) -> CheckpointFiles:
    """Read a checkpoint's manifest and check everything but the content of the files it lists.

    Raises:
        RunError: If this is not a checkpoint, or not one that this version can read, or if it holds
            a file that is not listed: what reads a folder of tensors would take it, too.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is not a checkpoint: it is not a folder")
    path = folder / MANIFEST
    names = _names_in(folder)
    if MANIFEST not in names:
        raise RunError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    content = read_typed(path, dict[str, Any])
    version = typed(content, _Versioned, path).format_version
    if version != FORMAT_VERSION:
        raise RunError(
            f"{path} was written by another version (checkpoint format {version}, this one "
            f"reads {FORMAT_VERSION}); use the version that wrote it"
        )
    manifest = typed(content, CheckpointFiles, path)
    if folder.name.isdecimal() and manifest.step != int(folder.name):
        raise RunError(f"{path} is damaged: it says step {manifest.step}, its folder {folder.name}")
    for name in names:
        if name not in manifest.files and name != MANIFEST and _could_be_read(name):
            raise RunError(
                f"{folder / printable(name)} does not belong to the checkpoint, or {MANIFEST} is "
                "damaged, which does not list it"
            )
    return manifest


def _names_in(folder: Path) -> list[str]:
    """Return the names of the regular files in a folder.

    Raises:
        RunError: If something that a reader could open is no regular file, or is a pickle.
    """
    try:
        modes = {entry.name: entry.lstat().st_mode for entry in sorted(folder.iterdir())}
    except OSError as error:
        raise RunError(f"cannot read {folder}: {one_line(error)}") from error
    for name, mode in modes.items():
        # What reads a folder of tensors opens all of them, and would wait at a pipe.
        if not stat.S_ISREG(mode):
            if not _could_be_read(name):
                continue
            raise RunError(f"{folder / printable(name)} is damaged: it is not a regular file")
        if _is_pickle(folder / name):
            raise RunError(
                f"refusing to run code from {folder / printable(name)}: it is a pickle, and a "
                "checkpoint holds only safetensors and JSON"
            )
    return [name for name, mode in modes.items() if stat.S_ISREG(mode)]


def _could_be_read(name: str) -> bool:
    """Return whether a file takes part in a checkpoint, unlike a note next to it."""
    return name.endswith((".safetensors", ".json"))


def verify_file(folder: Path, manifest: CheckpointFiles, name: str) -> None:
    """Check one file of a checkpoint against its manifest.

    Raises:
        RunError: Naming the file, if it is missing, not a file of its own, or changed.
    """
    path = folder / name
    listed = manifest.files.get(name)
    if listed is None:
        raise RunError(f"{folder / MANIFEST} does not list {name}")
    try:
        # Not followed: a link could make a checkpoint read files outside its folder.
        require_regular_file(path)
        size = path.lstat().st_size
        if size != listed.size:
            raise RunError(f"{path} is damaged: {size} bytes instead of {listed.size}")
        if sha256_of_file(path) != listed.sha256:
            raise RunError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error


def _is_pickle(path: Path) -> bool:
    """Return whether `torch.load` or pickle would run code from a file, by its first bytes.

    The oldest protocols have no mark of their own; readers refuse them as what they are not.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            head = os.read(descriptor, 9)
        finally:
            os.close(descriptor)
    except OSError:
        return False  # reported where it is read
    # safetensors begins with the header's size, any eight bytes, and the header.
    is_marked = head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in _PROTOCOLS)
    return is_marked and head[8:] != b"{"
