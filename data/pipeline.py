"""Preparation: corpus to tokenizer to token shards, once, whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.prepared import PreparedData
from data.preparing.journal import Journal
from data.preparing.messages import left_over
from data.preparing.preparation import Preparation, content_of, corpora_of
from data.shards.manifest import FORMAT_VERSION, MANIFEST
from data.sources.open_corpus import source_identity
from data.splits import TRAIN
from files.disk import write_failure
from files.regular_file import read_regular_file
from files.synced import fsync_folder
from guards.printable import printable
from settings.data import DataSettings, TokenizerSettings

if TYPE_CHECKING:
    from filelock import FileLock

# How often one that waits for another preparation says so.
_REPEAT_S = 60.0


def _say_to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def prepared_folder(data: DataSettings, tokenizer: TokenizerSettings) -> Path:
    """Name the folder of a prepared corpus; its last part is a hash of what determines it.

    Quick: lists files, but reads no text and asks no network.

    Raises:
        DataError: If settings are out of range, all problems in one error, or a local path does
            not exist.
    """
    if problems := data.problems() + tokenizer.problems():
        raise DataError("; ".join(problems))
    parent, corpora = Path(data.prepared_dir).expanduser(), corpora_of(data).values()
    for corpus in corpora:
        root = Path(corpus.path).expanduser() if corpus.source == "local" and corpus.path else None
        if root is not None and parent.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"data.prepared_dir ({parent}) lies inside data.path ({root}), whose files would "
                "then be data; set it to another folder"
            )
    identity = {
        "format_version": FORMAT_VERSION,
        "data": content_of(data),
        "tokenizer": dataclasses.asdict(tokenizer),
        "source": [source_identity(corpus) for corpus in corpora],
        "tokenizer_files": _tokenizer_identity(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return parent / f"{data.name}-{tokenizer.name}-{digest}"


def _tokenizer_identity(tokenizer: TokenizerSettings) -> list[Any]:
    folder = Path(tokenizer.path).expanduser() if tokenizer.path else None
    if folder is None or not folder.is_dir():
        return []
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    except OSError as error:
        raise DataError(f"tokenizer.path: cannot read {folder} ({error})") from error


def prepare(
    data: DataSettings,
    tokenizer: TokenizerSettings,
    say: Callable[[str], None] = _say_to_stderr,
) -> PreparedData:
    """Prepare a corpus, or open it if that was done before.

    The work happens in a folder `<name>.partial`, which is renamed when it is complete; the same
    input gives the same bytes, whatever the number of processes and however often it was
    interrupted: it resumes after the last whole shard. Of two preparers of the same corpus, one
    waits for the other.

    Args:
        data: Where the text comes from.
        tokenizer: How it becomes tokens.
        say: Takes lines for the user.

    Returns:
        The prepared corpus.

    Raises:
        DataError: If settings, corpus or tokenizer cannot be used, or the disk is full.
    """
    import filelock

    folder = prepared_folder(data, tokenizer)
    try:
        if folder.exists():
            return PreparedData(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.prepared_dir: cannot create {folder.parent} ({error})") from error
    partial = folder.with_name(folder.name + ".partial")
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        try:
            _acquire(lock, folder, say)
            if not folder.exists():
                _fill(data, tokenizer, partial, say)
                partial.rename(folder)
                fsync_folder(folder.parent)
                _say_leaks(PreparedData(folder), say)
        finally:
            lock.release()
    except BrokenPipeError:  # of whoever reads what is said
        raise
    except OSError as error:
        failure = write_failure(Path(error.filename or partial), error)
        raise DataError(f"{failure}, or set data.prepared_dir to another disk") from error
    except MemoryError as error:
        raise DataError(
            f"no memory left to prepare {data.name}; rerun the same command with smaller "
            "data.num_workers, data.shard_tokens or tokenizer.max_training_bytes"
        ) from error
    return PreparedData(folder)


def _acquire(lock: "FileLock", folder: Path, say: Callable[[str], None]) -> None:
    """Wait for the lock, saying now and then for whom, and write into it who has it."""
    from filelock import Timeout

    path, timeout = Path(lock.lock_file), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            say(f"{_holder(path)} prepares {folder}; waiting for it")
            timeout = _REPEAT_S
    with contextlib.suppress(OSError):  # what is said to others is not worth an error
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")


def _holder(path: Path) -> str:
    # For one that is just beginning, or where the file cannot be shared, nothing is there.
    with contextlib.suppress(OSError, ValueError):
        return printable(read_regular_file(path, 1000).decode()) or "another process"
    return "another process"


def _fill(
    data: DataSettings, tokenizer: TokenizerSettings, partial: Path, say: Callable[[str], None]
) -> None:
    """Complete the unfinished folder."""
    for other in left_over(partial.parent, f"{data.name}-{tokenizer.name}-*"):
        if other != partial:
            say(f"{other} was left by other settings or another state of the source; delete it")
    # Otherwise tokenizers turns its threads off, with a warning, if anything ever forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # A manifest is written last: what has one was complete when its preparation was killed.
    if not (partial / MANIFEST).exists():
        preparation = Preparation(data, tokenizer, partial, say)
        try:
            preparation.run()
        except BaseException:  # Ctrl-C, too
            if preparation.has_whole_shards():
                say(f"what is done is kept in {partial}: the same command resumes it")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    Journal(partial).remove()
    fsync_folder(partial)


def _say_leaks(prepared: PreparedData, say: Callable[[str], None]) -> None:
    for where, number in prepared.leaks.items():
        if number:
            fate = "dropped" if prepared.dropped_leaks and where.startswith(TRAIN) else "kept"
            say(f"{number:,} documents of {where} too, character for character: {fate}")
