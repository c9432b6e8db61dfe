"""A prepared corpus on disk: reading and checking what the pipeline wrote."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError
from data.shards.manifest import FORMAT_VERSION, TOKENIZER_FOLDER, read_manifest
from data.shards.shard import Shard
from data.shards.stream import TokenStream
from data.splits import TRAIN, VALIDATION, label_of
from data.tokenizing.tokenizer import TOKENIZER_FILES, load_tokenizer, token_dtype
from files.regular_file import require_regular_file, sha256_of_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PreparedData:
    """A finished folder of token shards.

    Args:
        folder: What `data.pipeline.prepare` made.

    Attributes:
        folder: Where it is.
        name: The corpus' label.
        vocab_size: Number of token ids.
        end_of_document_id: Token after each document.
        tokenizer_sha256: Hash of tokenizer.json.
        fingerprint: Hash of everything a model sees: shards and tokenizer.
        source: What was read, as the corpus describes it.
        baselines: Perplexities of count models on the validation split.
        leaks: Documents of one split that are also in another: "train in validation" -> number.
        dropped_leaks: Whether those of the training split were left out.
        weights: Share of each corpus of a mixture in training; empty where there is one corpus.
            Its splits are those of the corpora ("train.NAME") and all of them together ("train").
        splits: Sizes by split.

    Raises:
        DataError: If the folder is not finished, not readable or not what its manifest states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        manifest, self.source = read_manifest(self.folder)
        self.name = manifest.name
        self.vocab_size = manifest.tokenizer.vocab_size
        self.end_of_document_id = manifest.tokenizer.end_of_document_id
        self._tokenizer_hashes = {key: manifest.tokenizer.sha256[key] for key in TOKENIZER_FILES}
        self.tokenizer_sha256 = self._tokenizer_hashes[TOKENIZER_FILES[0]]
        self.baselines = manifest.baselines
        self.leaks = manifest.leaks
        self.dropped_leaks = manifest.settings.data.drop_leaked_documents
        self.weights = manifest.weights
        self.splits = {split: entry.counts for split, entry in manifest.splits.items()}
        self._shards = {split: entry.shards for split, entry in manifest.splits.items()}
        self._check_files()

    @property
    def fingerprint(self) -> str:
        """Hash of the token shards and the tokenizer; equal means the same data."""
        content = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer_sha256,
            "weights": self.weights,
            "shards": {split: [s.sha256 for s in some] for split, some in self._shards.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def revision(self) -> str | None:
        """What identifies the text at its source, of every corpus; None where nothing does."""
        corpora = self.source.get("corpora", {"": self.source})
        known = {
            name: source.get("commit") or source.get("revision") for name, source in corpora.items()
        }
        parts = [f"{name} {commit}".strip() for name, commit in known.items() if commit]
        return ", ".join(parts) or None

    @property
    def num_shards(self) -> dict[str, int]:
        """Number of shard files by split."""
        return {split: len(shards) for split, shards in self._shards.items()}

    def parts_of(self, split: str) -> list[str]:
        """Return the splits that a split of a mixture unites; itself if it unites none."""
        united = [label_of(split, name) for name in self.weights]
        return [label for label in united if label in self.splits] or [split]

    def stream(self, split: str) -> TokenStream:
        """Open a split's tokens, once they are known to be what was written.

        A process reads each file in full the first time.

        Raises:
            DataError: If there is no such split, or a shard is not what was written.
        """
        if split not in self.splits:
            raise DataError(
                f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        shards = self._shards[split]
        with self._named():
            return TokenStream(
                [self.folder / shard.file for shard in shards],
                self.vocab_size,
                [shard.sha256 for shard in shards],
            )

    def training_streams(self) -> dict[str, tuple[TokenStream, float]]:
        """Open the training tokens of each corpus by its name, with its share in training.

        What training reads later, the validation split and the tokenizer, is looked at as well:
        that it is damaged should not come out after hours.

        Raises:
            DataError: If any of it is not what was written.
        """
        self.stream(VALIDATION)
        self._check_tokenizer()
        if not self.weights:
            return {self.name: (self.stream(TRAIN), 1.0)}
        return {
            name: (self.stream(label_of(TRAIN, name)), weight)
            for name, weight in self.weights.items()
        }

    def tokenizer(self) -> "Tokenizer":
        """Open the tokenizer that made the tokens.

        Raises:
            DataError: If it is not what was written.
        """
        self._check_tokenizer()
        return load_tokenizer(self.folder / TOKENIZER_FOLDER)

    def verify(self) -> None:
        """Recompute every hash; reads all data.

        Raises:
            DataError: Naming the first file that is not what was written.
        """
        self._check_tokenizer()
        for shards in self._shards.values():
            position = 0
            for entry in shards:
                with self._named():
                    shard = Shard(self.folder / entry.file)
                    shard.verify(entry.sha256, self.vocab_size, position)
                position += entry.tokens

    def _check_tokenizer(self) -> None:
        for name, sha256 in self._tokenizer_hashes.items():
            path = self.folder / TOKENIZER_FOLDER / name
            with self._named(path):
                if sha256_of_file(path) != sha256:
                    raise DataError(f"{path} is not what was written (sha256 differs)")

    def _check_files(self) -> None:
        """Look at every file without reading it."""
        dtype = token_dtype(self.vocab_size)
        for split, shards in self._shards.items():
            for entry in shards:
                with self._named():
                    shard = Shard(self.folder / entry.file)
                    if len(shard) != entry.tokens or shard.dtype != dtype:
                        raise DataError(
                            f"shard {self.folder / entry.file} holds {len(shard)} {shard.dtype} "
                            f"instead of {entry.tokens} {dtype}"
                        )
            total, stated = sum(entry.tokens for entry in shards), self.splits[split].tokens
            with self._named():
                if total != stated:
                    raise DataError(
                        f"the shards of split {split} hold {total} tokens instead of {stated}"
                    )
        for name in TOKENIZER_FILES:
            path = self.folder / TOKENIZER_FOLDER / name
            with self._named(path):
                require_regular_file(path)

    @contextlib.contextmanager
    def _named(self, path: Path | None = None) -> Iterator[None]:
        """Say of an error in which file it is and what to do."""
        again = f"delete {self.folder} and prepare again"
        try:
            yield
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); {again}") from error
        except DataError as error:
            what = str(error)
            raise DataError(what if again in what else f"{what}; {again}") from error
