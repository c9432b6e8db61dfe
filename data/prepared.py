"""A prepared corpus on disk: reading and checking what the pipeline wrote."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.files import sha256_of_file
from data.shards import TokenStream, open_shard, token_dtype
from data.sources import TRAIN
from data.tokenizer import TOKENIZER_FILES, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"


def label_of(split: str, corpus: str) -> str:
    """Name a split of one of the corpora that are mixed; `corpus` is '' where there is only one."""
    return f"{split}.{corpus}" if corpus else split


@dataclass(frozen=True)
class SplitCounts:
    """Size of one split.

    Attributes:
        documents: Documents, each followed by one end-of-document token.
        tokens: Tokens, end-of-document tokens included.
        utf8_bytes: UTF-8 bytes of the original text.
        words: Whitespace-separated words of the original text, plus one per line where the
            corpus counts line ends.
    """

    documents: int
    tokens: int
    utf8_bytes: int
    words: int


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
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format_version"] != FORMAT_VERSION:
                raise self._broken(
                    f"{path} has format {manifest['format_version']}, not {FORMAT_VERSION}"
                )
            self.name: str = manifest["name"]
            self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
            self.end_of_document_id: int = manifest["tokenizer"]["end_of_document_id"]
            hashes = manifest["tokenizer"]["sha256"]
            self._tokenizer_hashes = {name: str(hashes[name]) for name in TOKENIZER_FILES}
            self.tokenizer_sha256: str = self._tokenizer_hashes[TOKENIZER_FILES[0]]
            self.source: dict[str, Any] = manifest["source"]
            self.baselines: dict[str, float] = manifest["baselines"]
            self.leaks: dict[str, int] = manifest["leaks"]
            self.dropped_leaks: bool = manifest["settings"]["data"]["drop_leaked_documents"]
            self.weights: dict[str, float] = manifest["weights"]
            self._shards: dict[str, list[dict[str, Any]]] = {}
            self.splits: dict[str, SplitCounts] = {}
            for split, entry in manifest["splits"].items():
                counts = {key: int(entry[key]) for key in SplitCounts.__dataclass_fields__}
                self.splits[split] = SplitCounts(**counts)
                self._shards[split] = [
                    {
                        "file": str(shard["file"]),
                        "tokens": int(shard["tokens"]),
                        "sha256": str(shard["sha256"]),
                    }
                    for shard in entry["shards"]
                ]
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {self.folder} is no prepared corpus") from error
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(f"{path} is damaged ({type(error).__name__}: {error})") from error
        self._check_shards()

    @property
    def fingerprint(self) -> str:
        """Hash of the token shards and the tokenizer; equal means the same data."""
        content = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer_sha256,
            "weights": self.weights,
            "shards": {split: [s["sha256"] for s in some] for split, some in self._shards.items()},
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
        """Open a split's tokens.

        Raises:
            DataError: If there is no such split.
        """
        if split not in self.splits:
            raise DataError(
                f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return TokenStream([self.folder / s["file"] for s in self._shards[split]], self.vocab_size)

    def training_streams(self) -> dict[str, tuple[TokenStream, float]]:
        """Open the training tokens of each corpus by its name, with its share in training."""
        if not self.weights:
            return {self.name: (self.stream(TRAIN), 1.0)}
        return {
            name: (self.stream(label_of(TRAIN, name)), weight)
            for name, weight in self.weights.items()
        }

    def tokenizer(self) -> "Tokenizer":
        """Open the tokenizer that made the tokens."""
        return load_tokenizer(self.folder / TOKENIZER_FOLDER)

    def verify(self) -> None:
        """Recompute every hash; reads all data.

        Raises:
            DataError: Naming the first file that is not what was written.
        """
        expected = {
            self.folder / TOKENIZER_FOLDER / name: sha256
            for name, sha256 in self._tokenizer_hashes.items()
        }
        for shards in self._shards.values():
            expected |= {self.folder / shard["file"]: shard["sha256"] for shard in shards}
        for path, sha256 in expected.items():
            if not path.is_file() or sha256_of_file(path) != sha256:
                raise self._broken(f"{path} is missing or not what was written (sha256 differs)")

    def _check_shards(self) -> None:
        dtype = token_dtype(self.vocab_size)
        for split, shards in self._shards.items():
            for shard in shards:
                path = self.folder / shard["file"]
                if path.parent != self.folder:
                    raise self._broken(f"{path} lies outside the folder")
                try:
                    tokens = open_shard(path)
                except DataError as error:
                    raise self._broken(str(error)) from error
                if tokens.shape != (shard["tokens"],) or tokens.dtype != dtype:
                    raise self._broken(
                        f"shard {path} holds {tokens.shape} {tokens.dtype} instead of "
                        f"({shard['tokens']},) {dtype}"
                    )
            total = sum(shard["tokens"] for shard in shards)
            if total != self.splits[split].tokens:
                raise self._broken(
                    f"the shards of split {split} hold {total} tokens instead of "
                    f"{self.splits[split].tokens}"
                )
        if not (self.folder / TOKENIZER_FOLDER / TOKENIZER_FILES[0]).is_file():
            raise self._broken(f"{self.folder / TOKENIZER_FOLDER} holds no tokenizer")

    def _broken(self, what: str) -> DataError:
        return DataError(f"{what}; delete {self.folder} and prepare again")
