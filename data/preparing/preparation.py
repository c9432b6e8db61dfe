"""The steps of a preparation: open the corpora, make the tokenizer, pack, count, state."""

import dataclasses
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.preparing.count_models import MAX_COUNTED_TOKENS, count_baselines
from data.preparing.journal import Begun, Journal
from data.preparing.messages import notes_on, too_little
from data.preparing.packing import Packer
from data.shards.manifest import TOKENIZER_FOLDER, write_manifest
from data.shards.stream import TokenStream
from data.sources.corpus import Corpus
from data.sources.open_corpus import open_corpus
from data.splits import TEST, TRAIN, VALIDATION, label_of
from data.tokenizing.pretrained import build_tokenizer
from data.tokenizing.tokenizer import (
    TOKENIZER_FILES,
    end_of_document_id,
    first_bytes,
    load_tokenizer,
    save_tokenizer,
    token_dtype,
    vocab_size_of,
)
from files.regular_file import sha256_of_file
from files.synced import fsync_folder
from settings.data import DataSettings, TokenizerSettings

# What takes a minute or so is worth a line.
_LONG_TRAINING_BYTES = 2**24
# They change where and how fast a corpus is prepared, not what it is.
_NOT_CONTENT = ("prepared_dir", "num_workers", "sample_prompt")
# Counted up when the journal records other things.
_JOURNAL_VERSION = 2


def corpora_of(data: DataSettings) -> dict[str, DataSettings]:
    """Return the settings of each corpus: one without a name, or those of a mixture."""
    return data.corpora or {"": data}


def content_of(data: DataSettings) -> dict[str, Any]:
    """Return what of the settings decides a prepared corpus' content."""
    settings = dataclasses.asdict(data)
    for some in (settings, *settings["corpora"].values()):
        for key in _NOT_CONTENT:
            del some[key]
        # Names of folders that were prepared before this key existed stay what they are.
        if some["source"] != "local":
            del some["encoding"]
    return settings


class Preparation:
    """Fill a folder, or continue to fill it.

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
        self._tokenizer_folder = folder / TOKENIZER_FOLDER
        self._say = say
        self._journal = Journal(folder)

    def has_whole_shards(self) -> bool:
        """Return whether there is anything worth keeping, now that the preparation has failed."""
        try:
            begun = self._journal.load()
        except DataError:
            return True
        splits = begun[0].get("splits", {}) if begun else {}
        return any(split["shards"] for split in splits.values())

    def run(self) -> None:
        """Do everything that is not done yet; the folder is complete afterwards.

        Raises:
            DataError: If corpus or tokenizer cannot be used.
            OSError: If the folder cannot be written to.
        """
        data, folder, say = self._data, self._folder, self._say
        begun = self._journal.load() if folder.exists() else None
        commits = begun[0].get("commits", {}) if begun else {}
        corpora = [
            open_corpus(settings, name, commits.get(name))
            for name, settings in corpora_of(data).items()
        ]
        # With the folder's name, which is a hash of the rest, what decides the tokens.
        identity = {
            "journal_version": _JOURNAL_VERSION,
            "libraries": _libraries(),
            "commits": {corpus.name: corpus.description.get("commit") for corpus in corpora},
        }
        begun = self._checked(begun, identity)
        verb = "preparing" if begun is None else "resuming the preparation of"
        say(f"{verb} {data.name} with tokenizer {self._tokenizer.name} in {folder}")
        for note in (note for corpus in corpora for note in corpus.notes):
            # A file's name may hold bytes that are no text.
            say(note.encode("utf-8", "backslashreplace").decode())
        if begun is None:
            folder.mkdir()
            state = identity | self._make_tokenizer(corpora)
            self._journal.commit(state, {})
        else:
            state = {key: begun[0][key] for key in (*identity, "tokenizer", "tokenizer_commit")}
        vocab_size = vocab_size_of(load_tokenizer(self._tokenizer_folder))
        packer = Packer(
            folder, corpora, data, token_dtype(vocab_size), self._journal, state, begun, say
        )
        splits = self._with_unions(packer.run(self._tokenizer_folder))
        for corpus in corpora:
            for split in (TRAIN, VALIDATION):
                if splits[corpus.label(split)]["tokens"] < 2:
                    raise DataError(too_little(split, corpus, packer.progress.num_read))
        for line in notes_on(corpora, splits, packer.num_empty, self._tokenizer.name):
            say(line)
        described = {
            corpus.name: corpus.described(packer.documents_of(corpus)) for corpus in corpora
        }
        manifest = {
            "name": data.name,
            "source": described.get("") or {"source": "mixture", "corpora": described},
            "settings": {
                "data": content_of(data),
                "tokenizer": dataclasses.asdict(self._tokenizer),
            },
            "tokenizer": {
                "vocab_size": vocab_size,
                "end_of_document_id": end_of_document_id(self._tokenizer_folder),
                "commit": state["tokenizer_commit"],
                "sha256": state["tokenizer"],
            },
            "weights": data.weights,
            "splits": splits,
            "leaks": packer.progress.leaks,
            "baselines": self._baselines(splits, vocab_size),
            "created_by": _libraries(),
        }
        write_manifest(folder, manifest)

    def _checked(self, begun: Begun | None, identity: dict[str, Any]) -> Begun | None:
        """Return what an earlier preparation left, if it can be continued, or remove it."""
        if begun is not None:
            expected = identity | {"tokenizer": self._tokenizer_hashes()}
            if {key: begun[0].get(key) for key in expected} == expected:
                return begun
        if self._folder.exists():
            self._say(f"discarding an interrupted preparation in {self._folder}")
            shutil.rmtree(self._folder)
        return None

    def _tokenizer_hashes(self) -> dict[str, str]:
        paths = [self._tokenizer_folder / name for name in TOKENIZER_FILES]
        return {path.name: sha256_of_file(path) for path in paths if path.is_file()}

    def _make_tokenizer(self, corpora: list[Corpus]) -> dict[str, Any]:
        """Build and save the tokenizer; return its hashes, and its commit if it has one."""
        settings, folder = self._tokenizer, self._tokenizer_folder
        size = min(sum(c.text_bytes or 0 for c in corpora), settings.max_training_bytes)
        if settings.kind == "bpe" and size > _LONG_TRAINING_BYTES:
            self._say(f"training tokenizer {settings.name} on about {size / 1e6:.0f} MB")
        built = build_tokenizer(settings, self._training_texts(corpora))
        save_tokenizer(built.tokenizer, built.end_of_document, folder)
        fsync_folder(folder)
        vocab_size = vocab_size_of(load_tokenizer(folder))
        if settings.kind == "bpe" and vocab_size < settings.vocab_size:
            self._say(f"the training text gave only {vocab_size} of {settings.vocab_size} tokens")
        return {"tokenizer": self._tokenizer_hashes(), "tokenizer_commit": built.commit}

    def _training_texts(self, corpora: list[Corpus]) -> Iterator[str]:
        """Yield what a tokenizer is trained on: of each corpus its share."""
        weights = self._data.weights or {"": 1.0}
        for corpus in corpora:
            share = weights[corpus.name] / sum(weights.values())
            texts = corpus.documents(TRAIN)
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

    def _baselines(self, splits: dict[str, dict[str, Any]], vocab_size: int) -> dict[str, float]:
        """Score the validation split by count models of the training split."""
        train, validation = (
            TokenStream(
                [self._folder / shard["file"] for shard in splits[split]["shards"]], vocab_size
            )
            for split in (TRAIN, VALIDATION)
        )
        if len(train) > MAX_COUNTED_TOKENS:
            self._say(f"baselines count the first {MAX_COUNTED_TOKENS:,} training tokens")
        return count_baselines(train, validation, vocab_size)


def _libraries() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers")}
    return {"python": platform.python_version(), **versions}
