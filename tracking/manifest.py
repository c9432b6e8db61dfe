"""The manifest of a checkpoint: what belongs to it, and whether it is still what was written.

Neither safetensors nor JSON notices a flipped bit, so every file is listed with its size and
sha256. The manifest is written last; a folder without one is not a checkpoint.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files.atomic import read_json, write_json
from files.disk import one_line
from files.errors import RunError
from guards.printable import printable

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
_FILE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        step: Optimizer steps done when it was written.
        files: Size in bytes and sha256 (hexadecimal) by file name.
    """

    step: int
    files: dict[str, tuple[int, str]]


def write_manifest(folder: Path, step: int) -> None:
    """List every file in the folder, with its size and sha256.

    Raises:
        RunError: If the manifest cannot be written.
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    write_json(folder / FILE_NAME, {"format_version": FORMAT_VERSION, "step": step, "files": files})


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and check everything but the content of the files it lists.

    Raises:
        RunError: If this is not a checkpoint, or not one that this version can read, or if it holds
            a file besides those that are listed: what reads a folder of shards would take it, too.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is not a checkpoint: it is not a folder")
    path = folder / FILE_NAME
    try:
        modes = {entry.name: entry.lstat().st_mode for entry in sorted(folder.iterdir())}
    except OSError as error:
        raise RunError(f"cannot read {folder}: {one_line(error)}") from error
    for name, mode in modes.items():
        # What reads a folder of shards opens all of them, and would wait at a pipe.
        if not stat.S_ISREG(mode):
            if not _could_be_read(name):
                continue
            raise RunError(f"{folder / printable(name)} is damaged: it is not a regular file")
        if _is_pickle(folder / name):
            raise RunError(
                f"refusing to run code from {folder / printable(name)}: it is a pickle, and a "
                "checkpoint holds only safetensors and JSON"
            )
    if FILE_NAME not in modes:
        raise RunError(f"{folder} is not a complete checkpoint: it has no {FILE_NAME}")
    content = read_json(path)
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise RunError(
            f"{path} was written by another version (checkpoint format {version!r}, this one "
            f"reads {FORMAT_VERSION}); use the version that wrote it"
        )
    if set(content) != {"format_version", "step", "files"}:
        raise RunError(f"{path} is damaged: unexpected keys {sorted(content)}")
    step, files = _checked_step(content["step"], path), _checked_files(content["files"], path)
    for name in modes:
        if name not in files and name != FILE_NAME and _could_be_read(name):
            raise RunError(
                f"{folder / printable(name)} does not belong to the checkpoint, or {FILE_NAME} is "
                "damaged, which does not list it"
            )
    return Manifest(step, files)


def _could_be_read(name: str) -> bool:
    """Tell what takes part in a checkpoint from a note or a file manager's folder beside it."""
    return name.endswith((".safetensors", ".json"))


def verify_file(folder: Path, manifest: Manifest, name: str) -> None:
    """Check one file of a checkpoint against its manifest.

    Raises:
        RunError: Naming the file, if it is missing, not a file of its own, or changed.
    """
    path = folder / name
    if name not in manifest.files:
        raise RunError(f"{folder / FILE_NAME} does not list {name}")
    size, sha256 = manifest.files[name]
    try:
        # Not followed: a link could make a checkpoint read files outside its folder.
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise RunError(f"{path} is damaged: it is not a regular file")
        if found.st_size != size:
            raise RunError(f"{path} is damaged: {found.st_size} bytes instead of {size}")
        if _sha256(path) != sha256:
            raise RunError(f"{path} is damaged: its sha256 is not the one in {FILE_NAME}")
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error


def _checked_step(step: Any, path: Path) -> int:
    """Return the step, which must agree with the folder's name if that is a number."""
    folder_name = path.parent.name
    if type(step) is not int or (folder_name.isdecimal() and step != int(folder_name)):
        raise RunError(f"{path} is damaged: it says step {step!r}, its folder {folder_name}")
    return step


def _checked_files(files: Any, path: Path) -> dict[str, tuple[int, str]]:
    """Return the listed files; a name that could leave the folder is refused."""
    if not isinstance(files, dict):
        raise RunError(f"{path} is damaged: it lists no files")
    checked = {}
    for name, entry in files.items():
        if not _FILE_NAME_PATTERN.fullmatch(name):
            raise RunError(f"{path} is damaged: it lists the file name {name[:60]!r}")
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise RunError(f"{path} is damaged: it lacks size or sha256 of {name}")
        size, sha256 = entry["size"], entry["sha256"]
        if (
            type(size) is not int
            or type(sha256) is not str
            or not _SHA256_PATTERN.fullmatch(sha256)
        ):
            raise RunError(f"{path} is damaged: size or sha256 of {name} is malformed")
        checked[name] = (size, sha256)
    return checked


def _is_pickle(path: Path) -> bool:
    """Tell by its first bytes a file that `torch.load` or pickle would run code from.

    The oldest protocols have no mark of their own; they are told as what cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # told where it is read
    try:
        head = os.read(descriptor, 9)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    # safetensors begins with the header's size, any eight bytes, and the header.
    is_marked = head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in _PROTOCOLS)
    return is_marked and head[8:] != b"{"


def _sha256(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
