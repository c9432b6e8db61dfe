"""Preparation: corpus to tokenizer to token shards, once, whole or not at all."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.baselines import MAX_COUNTED_TOKENS, count_baselines
from data.errors import DataError
from data.files import sha256_of_file, sync_folder, write_bytes_synced
from data.prepared import FORMAT_VERSION, MANIFEST, TOKENIZER_FOLDER, PreparedData, SplitCounts
from data.settings import DataSettings, TokenizerSettings
from data.shards import ShardWriter, TokenStream, token_dtype
from data.sources import TRAIN, VALIDATION, Corpus, Document, open_corpus, source_identity
from data.tokenizer import (
    TOKENIZER_FILES,
    build_tokenizer,
    end_of_document_id,
    load_tokenizer,
    save_tokenizer,
    split_long,
    vocab_size_of,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Text encoded at once: enough to keep all cores busy, and below 1 GB of encodings.
_BATCH_CHARACTERS = 2**22


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
    settings = dataclasses.asdict(data)
    del settings["prepared_dir"]
    identity = {
        "format_version": FORMAT_VERSION,
        "data": settings,
        "tokenizer": dataclasses.asdict(tokenizer),
        "source": source_identity(data),
        "tokenizer_files": _tokenizer_identity(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return Path(data.prepared_dir).expanduser() / f"{data.name}-{tokenizer.name}-{digest}"


def _tokenizer_identity(tokenizer: TokenizerSettings) -> list[Any]:
    folder = Path(tokenizer.path).expanduser() if tokenizer.path else None
    if folder is None or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def prepare(
    data: DataSettings,
    tokenizer: TokenizerSettings,
    say: Callable[[str], None] = _say_to_stderr,
) -> PreparedData:
    """Prepare a corpus, or open it if that was done before.

    The work happens in a folder `<name>.partial`, which is renamed when it is complete; the same
    input gives the same bytes. Of two preparers of the same corpus, one waits for the other.

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
    if folder.exists():
        return PreparedData(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.prepared_dir: cannot create {folder.parent} ({error})") from error
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"another process prepares {folder}; waiting for it")
        lock.acquire()
    except OSError as error:
        raise DataError(f"data.prepared_dir: cannot write to {folder.parent} ({error})") from error
    try:
        if not folder.exists():
            _prepare_locked(data, tokenizer, folder, say)
    finally:
        lock.release()
    return PreparedData(folder)


def _prepare_locked(
    data: DataSettings, tokenizer: TokenizerSettings, folder: Path, say: Callable[[str], None]
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        say(f"discarding an interrupted preparation in {partial}")
        shutil.rmtree(partial)
    # Otherwise tokenizers turns its threads off, with a warning, if anything ever forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        partial.mkdir()
        _fill(data, tokenizer, partial, say)
        partial.rename(folder)
        sync_folder(folder.parent)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fill(
    data: DataSettings, settings: TokenizerSettings, folder: Path, say: Callable[[str], None]
) -> None:
    say(f"preparing {data.name} with tokenizer {settings.name} in {folder}")
    corpus = open_corpus(data)
    for note in corpus.notes:
        say(note)
    tokenizer_folder = folder / TOKENIZER_FOLDER
    built, end_of_document = build_tokenizer(settings, corpus.documents(TRAIN))
    save_tokenizer(built, end_of_document, tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    vocab_size = vocab_size_of(tokenizer)
    if settings.kind == "bpe" and vocab_size < settings.vocab_size:
        say(f"the training text gave only {vocab_size} of {settings.vocab_size} tokens")
    encoder = CorpusEncoder(
        tokenizer,
        folder,
        corpus,
        data,
        end_of_document_id=end_of_document_id(tokenizer_folder),
        cuts_exactly=settings.kind != "pretrained",
    )
    splits = encoder.run()
    for split in (TRAIN, VALIDATION):
        if splits[split]["tokens"] < 2:
            raise DataError(_too_little(split, data, encoder.num_read))
    streams = {
        split: TokenStream(
            [folder / shard["file"] for shard in splits[split]["shards"]], vocab_size
        )
        for split in (TRAIN, VALIDATION)
    }
    if len(streams[TRAIN]) > MAX_COUNTED_TOKENS:
        say(f"baselines count the first {MAX_COUNTED_TOKENS:,} training tokens")
    recorded = dataclasses.asdict(data)
    # Where it lies does not change what it is.
    del recorded["prepared_dir"]
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": data.name,
        "source": corpus.description,
        "settings": {"data": recorded, "tokenizer": dataclasses.asdict(settings)},
        "tokenizer": {
            "vocab_size": vocab_size,
            "end_of_document_id": encoder.end_of_document_id,
            "sha256": {name: sha256_of_file(tokenizer_folder / name) for name in TOKENIZER_FILES},
        },
        "splits": splits,
        "baselines": count_baselines(streams[TRAIN], streams[VALIDATION], vocab_size),
        "created_by": {
            "python": platform.python_version(),
            "datasets": importlib.metadata.version("datasets"),
            "tokenizers": importlib.metadata.version("tokenizers"),
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=sorted) + "\n"
    sync_folder(tokenizer_folder)
    write_bytes_synced(folder / MANIFEST, text.encode("utf-8", "backslashreplace"))
    sync_folder(folder)
    for split, entry in splits.items():
        say(f"{split}: {entry['documents']:,} documents, {entry['tokens']:,} tokens")


def _too_little(split: str, data: DataSettings, num_read: int) -> str:
    if split == TRAIN or num_read == 0:
        return f"data.source {data.source} ({data.path or data.name}): no text for split {split}"
    return (
        f"data.validation_fraction ({data.validation_fraction}) of {num_read} documents left none "
        "for validation: raise it, give a validation split (such as train.txt and validation.txt "
        "in one folder), or split long files into documents with data.document_start"
    )


class CorpusEncoder:
    """Encode every document of a corpus once, into one shard writer per split."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        folder: Path,
        corpus: Corpus,
        data: DataSettings,
        *,
        end_of_document_id: int,
        cuts_exactly: bool,
    ) -> None:
        self.end_of_document_id = end_of_document_id
        self.num_read = 0
        self._tokenizer = tokenizer
        self._corpus = corpus
        self._max_train_tokens = data.max_train_tokens
        self._count_line_ends = data.count_line_ends_as_words
        self._cuts_exactly = cuts_exactly
        dtype = token_dtype(vocab_size_of(tokenizer))
        self._writers = {
            split: ShardWriter(folder, split, dtype, data.shard_tokens) for split in corpus.splits
        }
        self._counts = {
            split: {"documents": 0, "utf8_bytes": 0, "words": 0} for split in corpus.splits
        }

    def run(self) -> dict[str, dict[str, Any]]:
        """Read, encode and write everything.

        Returns:
            By split the counts of SplitCounts and the list of shards.

        Raises:
            DataError: If a document cannot be read or encoded, or the disk is full.
        """
        from tqdm import tqdm

        # disable=None: no bar where the output is not a terminal.
        with tqdm(unit="B", unit_scale=True, desc="encoding", disable=None) as bar:
            for part in self._corpus.parts:
                waiting: list[tuple[str, Document]] = []
                num_waiting = 0
                for split, document in self._corpus.routed(part):
                    self.num_read += 1
                    waiting.append((split, document))
                    num_waiting += len(document.text)
                    if num_waiting >= _BATCH_CHARACTERS:
                        bar.update(self._encode(waiting))
                        waiting, num_waiting = [], 0
                        if part.split in (TRAIN, None) and self._train_is_full():
                            break
                bar.update(self._encode(waiting))
        for writer in self._writers.values():
            writer.finish()
        return {
            split: {
                **dataclasses.asdict(SplitCounts(tokens=writer.num_tokens, **self._counts[split])),
                "shards": writer.shards,
            }
            for split, writer in self._writers.items()
        }

    def _train_is_full(self) -> bool:
        limit = self._max_train_tokens
        return limit is not None and self._writers[TRAIN].num_tokens >= limit

    def _encode(self, documents: list[tuple[str, Document]]) -> int:
        """Encode and write a batch; return its UTF-8 bytes."""
        sizes = [_utf8_bytes(document) for _, document in documents]
        pieces = [
            list(split_long(document.text)) if self._cuts_exactly else [document.text]
            for _, document in documents
        ]
        encodings = iter(
            self._tokenizer.encode_batch_fast(
                [piece for some in pieces for piece in some], add_special_tokens=False
            )
        )
        for (split, document), size, some in zip(documents, sizes, pieces, strict=True):
            encoded = [next(encodings).ids for _ in some]
            if split == TRAIN and self._train_is_full():
                continue
            writer = self._writers[split]
            for ids in encoded:
                writer.add(ids)
            writer.add([self.end_of_document_id])
            counts = self._counts[split]
            counts["documents"] += 1
            counts["utf8_bytes"] += size
            counts["words"] += count_words(document.text, self._count_line_ends)
        return sum(sizes)


def _utf8_bytes(document: Document) -> int:
    try:
        return len(document.text.encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"{document.where}: character {error.start} is half of a surrogate pair, which UTF-8 "
            "cannot hold; correct or remove it"
        ) from error


def count_words(text: str, count_line_ends: bool) -> int:
    """Count whitespace-separated words, and one more per line if line ends count as words.

    Source:
        WikiText's perplexities count one end-of-line token a line (Merity et al. 2016).
    """
    words = len(text.split())
    if count_line_ends:
        words += text.count("\n") + (not text.endswith("\n"))
    return words
