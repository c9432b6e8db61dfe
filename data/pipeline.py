"""Preparation: corpus to tokenizer to token shards, once, whole or not at all."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.disk import cannot_write
from data.errors import DataError
from data.prepared import FORMAT_VERSION, TOKENIZER_FOLDER, PreparedData
from data.preparing.count_models import MAX_COUNTED_TOKENS, count_baselines
from data.preparing.journal import Journal
from data.preparing.messages import left_over, notes_on, too_little
from data.preparing.packing import Packer, Source
from data.shards.manifest import MANIFEST, write_manifest
from data.shards.stream import TokenStream
from data.sources.open_corpus import open_corpus, source_identity
from data.splits import TEST, TRAIN, VALIDATION, label_of
from data.tokenizing.pretrained import build_tokenizer
from data.tokenizing.tokenizer import (
    TOKENIZER_FILES,
    Tokens,
    end_of_document_id,
    first_bytes,
    load_tokenizer,
    save_tokenizer,
    token_dtype,
    vocab_size_of,
)
from files.regular_file import read_regular_file, sha256_of_file
from files.synced import fsync_folder
from guards.printable import printable
from settings.data import DataSettings, TokenizerSettings

if TYPE_CHECKING:
    from filelock import FileLock

# Of a preparation that was interrupted: its state, and its arrays.
Begun = tuple[dict[str, Any], dict[str, Tokens]]

# How often one that waits for another preparation says so.
_REPEAT_S = 60.0
# What takes a minute or so is worth a line.
_LONG_TRAINING_BYTES = 2**24
# They change where and how fast a corpus is prepared, not what it is.
_NOT_CONTENT = ("prepared_dir", "num_workers", "sample_prompt")


def _say_to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def check_settings(data: DataSettings, tokenizer: TokenizerSettings) -> None:
    """Refuse settings that are out of range, all problems in one error.

    Raises:
        DataError: If there is any.
    """
    problems = data.problems() + tokenizer.problems()
    if problems:
        raise DataError("; ".join(problems))


def prepared_folder(data: DataSettings, tokenizer: TokenizerSettings) -> Path:
    """Name the folder of a prepared corpus; its last part is a hash of what determines it.

    Quick: lists files, but reads no text and asks no network.

    Raises:
        DataError: If settings are out of range or a local path does not exist.
    """
    check_settings(data, tokenizer)
    parent = Path(data.prepared_dir).expanduser()
    for corpus in _corpora(data).values():
        root = Path(corpus.path).expanduser() if corpus.source == "local" and corpus.path else None
        if root is not None and parent.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"data.prepared_dir ({parent}) lies inside data.path ({root}), whose files would "
                "then be data; set it to another folder"
            )
    identity = {
        "format_version": FORMAT_VERSION,
        "data": _content(data),
        "tokenizer": dataclasses.asdict(tokenizer),
        "source": [source_identity(corpus) for corpus in _corpora(data).values()],
        "tokenizer_files": _tokenizer_identity(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return parent / f"{data.name}-{tokenizer.name}-{digest}"


def _corpora(data: DataSettings) -> dict[str, DataSettings]:
    """Return the settings of each corpus: one without a name, or those of a mixture."""
    return data.corpora or {"": data}


def _content(data: DataSettings) -> dict[str, Any]:
    """Return what of the settings decides a prepared corpus' content."""
    settings = dataclasses.asdict(data)
    for some in (settings, *settings["corpora"].values()):
        for key in _NOT_CONTENT:
            del some[key]
        # Names of folders that were prepared before there was such a key stay what they are.
        if some["source"] != "local":
            del some["encoding"]
    return settings


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
    interrupted: it goes on behind the last whole shard. Of two preparers of the same corpus, one
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
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        try:
            _acquire(lock, folder, say)
            if not folder.exists():
                _prepare_locked(data, tokenizer, folder, say)
        finally:
            lock.release()
    except BrokenPipeError:  # of whoever reads what is said
        raise
    except OSError as error:
        raise cannot_write(folder, error) from error
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


def _prepare_locked(
    data: DataSettings, tokenizer: TokenizerSettings, folder: Path, say: Callable[[str], None]
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    for other in left_over(folder.parent, f"{data.name}-{tokenizer.name}-*"):
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
                say(f"what is done is kept in {partial}: the same command goes on there")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    Journal(partial).remove()
    fsync_folder(partial)
    partial.rename(folder)
    fsync_folder(folder.parent)
    prepared = PreparedData(folder)
    for where, number in prepared.leaks.items():
        if number:
            fate = "dropped" if prepared.dropped_leaks and where.startswith(TRAIN) else "kept"
            say(f"{number:,} documents of {where} too, character for character: {fate}")


class Preparation:
    """Fill a folder, or go on filling it.

    Args:
        data: Where the text comes from.
        tokenizer: How it becomes tokens.
        folder: What is filled; another preparation may have begun it.
        say: Takes lines for the user.
    """

    def __init__(
        self,
        data: DataSettings,
        tokenizer: TokenizerSettings,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._folder = folder
        self._say = say
        self._journal = Journal(folder)

    def has_whole_shards(self) -> bool:
        """Tell whether there is anything worth keeping, now that the preparation has failed."""
        try:
            begun = self._journal.load()
        except DataError:
            return True
        splits = begun[0].get("splits", {}) if begun else {}
        return any(split["shards"] for split in splits.values())

    def run(self) -> None:
        """Do everything that is not done yet; the folder is complete afterwards.

        Raises:
            DataError: If corpus or tokenizer cannot be used, or the disk is full.
        """
        data, folder, say = self._data, self._folder, self._say
        begun = self._journal.load() if folder.exists() else None
        commits = begun[0].get("commits", {}) if begun else {}
        sources = [
            Source(name, settings, open_corpus(settings, commits.get(name)))
            for name, settings in _corpora(data).items()
        ]
        # With the folder's name, which is a hash of the rest, what decides the tokens.
        identity = {
            "libraries": _libraries(),
            "commits": {source.name: source.corpus.description.get("commit") for source in sources},
        }
        begun = self._checked(begun, identity)
        verb = "preparing" if begun is None else "going on preparing"
        say(f"{verb} {data.name} with tokenizer {self._tokenizer.name} in {folder}")
        for note in (note for source in sources for note in source.corpus.notes):
            # A file's name may hold bytes that are no text.
            say(note.encode("utf-8", "backslashreplace").decode())
        tokenizer_folder = folder / TOKENIZER_FOLDER
        if begun is None:
            folder.mkdir()
            tokenizer_commit = self._make_tokenizer(sources, tokenizer_folder)
        else:
            tokenizer_commit = begun[0]["tokenizer_commit"]
        hashes = _tokenizer_hashes(tokenizer_folder)
        base_state = {
            **identity,
            "tokenizer": hashes,
            "tokenizer_commit": tokenizer_commit,
        }
        if begun is None:
            self._journal.commit(base_state, {})
        vocab_size = vocab_size_of(load_tokenizer(tokenizer_folder))
        packer = Packer(
            folder, sources, data, token_dtype(vocab_size), self._journal, base_state, begun, say
        )
        splits = self._with_unions(packer.run(tokenizer_folder))
        for source in sources:
            for split in (TRAIN, VALIDATION):
                if splits[label_of(split, source.name)]["tokens"] < 2:
                    raise DataError(too_little(split, source, packer.num_read))
        for line in notes_on(sources, splits, packer.num_empty, self._tokenizer.name):
            say(line)
        streams = {
            split: TokenStream(
                [folder / shard["file"] for shard in splits[split]["shards"]], vocab_size
            )
            for split in (TRAIN, VALIDATION)
        }
        if len(streams[TRAIN]) > MAX_COUNTED_TOKENS:
            say(f"baselines count the first {MAX_COUNTED_TOKENS:,} training tokens")
        manifest = {
            "name": data.name,
            "source": self._description(sources, packer),
            "settings": {
                "data": _content(data),
                "tokenizer": dataclasses.asdict(self._tokenizer),
            },
            "tokenizer": {
                "vocab_size": vocab_size,
                "end_of_document_id": end_of_document_id(tokenizer_folder),
                "commit": tokenizer_commit,
                "sha256": hashes,
            },
            "weights": data.weights,
            "splits": splits,
            "leaks": packer.leaks,
            "baselines": count_baselines(streams[TRAIN], streams[VALIDATION], vocab_size),
            "created_by": _libraries(),
        }
        write_manifest(folder, manifest)

    def _checked(self, begun: Begun | None, identity: dict[str, Any]) -> Begun | None:
        """Return what an earlier preparation left, if it can be continued, or remove it."""
        if begun is not None:
            hashes = _tokenizer_hashes(self._folder / TOKENIZER_FOLDER)
            expected = identity | {"tokenizer": hashes}
            if {key: begun[0].get(key) for key in expected} == expected:
                return begun
        if self._folder.exists():
            self._say(f"discarding an interrupted preparation in {self._folder}")
            shutil.rmtree(self._folder)
        return None

    def _make_tokenizer(self, sources: list[Source], folder: Path) -> str | None:
        """Build and save the tokenizer; return its commit if it has one."""
        sizes = [source.corpus.text_bytes for source in sources]
        size = min(sum(size or 0 for size in sizes), self._tokenizer.max_training_bytes)
        if self._tokenizer.kind == "bpe" and size > _LONG_TRAINING_BYTES:
            self._say(f"training tokenizer {self._tokenizer.name} on about {size / 1e6:.0f} MB")
        built = build_tokenizer(self._tokenizer, self._training_texts(sources))
        save_tokenizer(built.tokenizer, built.end_of_document, folder)
        fsync_folder(folder)
        vocab_size = vocab_size_of(load_tokenizer(folder))
        if self._tokenizer.kind == "bpe" and vocab_size < self._tokenizer.vocab_size:
            self._say(
                f"the training text gave only {vocab_size} of {self._tokenizer.vocab_size} tokens"
            )
        return built.commit

    def _training_texts(self, sources: list[Source]) -> Iterator[str]:
        """Yield what a tokenizer is trained on: of each corpus its share."""
        weights = self._data.weights or {"": 1.0}
        for source in sources:
            share = weights[source.name] / sum(weights.values())
            texts = source.corpus.documents(TRAIN)
            yield from first_bytes(texts, share * self._tokenizer.max_training_bytes)

    def _with_unions(self, splits: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Add the splits that hold those of all corpora of a mixture, one after another."""
        unions: dict[str, dict[str, Any]] = {}
        for name in self._data.corpora:
            for split in (TRAIN, VALIDATION, TEST):
                for key, value in splits.get(label_of(split, name), {}).items():
                    union = unions.setdefault(split, {})
                    union[key] = union[key] + value if key in union else value
        return splits | unions

    def _description(self, sources: list[Source], packer: Packer) -> dict[str, Any]:
        described = {
            source.name: source.corpus.described(packer.documents_of(source)) for source in sources
        }
        if not self._data.corpora:
            return described[""]
        return {"source": "mixture", "corpora": described}


def _libraries() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "datasets": importlib.metadata.version("datasets"),
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    return {
        name: sha256_of_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    }
