"""The manifest of a prepared corpus: what it states, field by field."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from data.errors import DataError
from data.splits import TRAIN, VALIDATION, label_of
from data.tokenizing.tokenizer import TOKENIZER_FILES
from files.errors import RunError
from files.sealed import sealed, unsealed
from files.strict_json import read_json_object
from files.synced import fsync_folder, write_synced
from files.typed_json import typed

# Of the tokens: part of a prepared folder's name and of the fingerprint, which results state.
FORMAT_VERSION = 2
TOKENIZER_FOLDER = "tokenizer"
MANIFEST = "manifest.json"
# Of the manifest alone: the name and the fingerprint of prepared data do not depend on it.
MANIFEST_VERSION = 3
# Read, too: without a hash of its own, but with those of all files.
_UNSEALED_VERSION = 2
# It lists every source file; a million of them fit.
_MAX_BYTES = 2**29
_MAX_VOCABULARY = 2**32
_BASELINES = ("unigram_perplexity", "bigram_perplexity", "counted_train_tokens")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# An integer stays one: the fingerprint is of the numbers as they are written.
Positive = Annotated[int, msgspec.Meta(gt=0)] | Annotated[float, msgspec.Meta(gt=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


def share_of(lost: int, whole: int) -> str:
    """Write a share as a percentage of three digits: 12.5 %, 0.0034 %."""
    return f"{100 * lost / whole:.3g} %" if whole else "0 %"


@dataclass(frozen=True)
class SplitCounts:
    """Size of one split.

    Attributes:
        documents: Documents, each followed by one end-of-document token.
        tokens: Tokens, end-of-document tokens included.
        utf8_bytes: UTF-8 bytes of the original text.
        words: Whitespace-separated words of the original text, plus one per line where the
            corpus counts line ends.
        lost_bytes: UTF-8 bytes of the original text that the tokenizer does not give back as they
            were; 0 also where a folder was prepared before they were measured.
    """

    documents: Count
    tokens: Count
    utf8_bytes: Count
    words: Count
    lost_bytes: Count = 0


class ShardEntry(msgspec.Struct, frozen=True):
    """A shard's file name, number of tokens and sha256."""

    file: str
    tokens: Count
    sha256: Sha256

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\x00]+\.npy", self.file):
            raise ValueError(f"{self.file!r} is not in the folder or is no .npy file")


@dataclass(frozen=True, kw_only=True)
class SplitEntry(SplitCounts):
    """The size of a split and its files, in order."""

    shards: list[ShardEntry]

    def __post_init__(self) -> None:
        if self.lost_bytes > self.utf8_bytes:
            raise ValueError(f"{self.lost_bytes} of {self.utf8_bytes} bytes cannot be lost")
        # An empty text is no document, and each one has its end.
        if min(self.tokens, self.utf8_bytes) < self.documents:
            raise ValueError(
                f"{self.tokens} tokens and {self.utf8_bytes} bytes cannot hold "
                f"{self.documents} documents"
            )

    @property
    def counts(self) -> SplitCounts:
        """The split's size."""
        sizes = {key: getattr(self, key) for key in SplitCounts.__dataclass_fields__}
        return SplitCounts(**sizes)


class TokenizerEntry(msgspec.Struct, frozen=True):
    """The tokenizer's size, the token after each document, and its files' hashes by name."""

    vocab_size: Annotated[int, msgspec.Meta(le=_MAX_VOCABULARY)]
    end_of_document_id: Count
    sha256: dict[str, Sha256]

    def __post_init__(self) -> None:
        if self.end_of_document_id >= self.vocab_size:
            raise ValueError(
                f"end_of_document_id {self.end_of_document_id} is not below vocab_size "
                f"{self.vocab_size}"
            )
        _require(self.sha256, *TOKENIZER_FILES)


class _Revisions(msgspec.Struct, kw_only=True):
    commit: str | None = None
    revision: str | None = None


class _Source(_Revisions, kw_only=True):
    source: str
    corpora: dict[str, _Revisions] = {}


class _DataSettings(msgspec.Struct):
    drop_leaked_documents: bool


class _Settings(msgspec.Struct):
    data: _DataSettings


class CorpusManifest(msgspec.Struct, frozen=True):
    """What a manifest states, each value of its type and in its range.

    Attributes:
        name: The corpus' label.
        source: What was read, the part of it that is checked.
        settings: How, the part of it that is used again.
        tokenizer: By what it became tokens.
        weights: Share of each corpus of a mixture in training.
        splits: Files and sizes by split.
        leaks: Documents of one split that are also in another.
        baselines: Perplexities of count models on the validation split.
    """

    name: str
    source: _Source
    settings: _Settings
    tokenizer: TokenizerEntry
    weights: dict[str, Positive]
    splits: dict[str, SplitEntry]
    leaks: dict[str, Count]
    baselines: dict[str, Positive]

    def __post_init__(self) -> None:
        for corpus in ("", *self.weights):
            _require(self.splits, *(label_of(split, corpus) for split in (TRAIN, VALIDATION)))
        if not self.splits[VALIDATION].documents:
            raise ValueError("the validation split holds no document")
        _require(self.baselines, *_BASELINES)


def _require(entries: dict[str, Any], *keys: str) -> None:
    if missing := [key for key in keys if key not in entries]:
        raise ValueError(f"{missing[0]!r} is missing")


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest, whole or not at all.

    Args:
        folder: The prepared corpus.
        content: All of it but the version and its own hash.

    Raises:
        OSError: If it cannot be written.
    """
    whole = sealed({"format_version": MANIFEST_VERSION, **content})
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    new = folder / f"{MANIFEST}.new"
    # A file's name may hold bytes that are no text.
    write_synced(new, text.encode("utf-8", "backslashreplace"))
    fsync_folder(folder)
    new.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> tuple[CorpusManifest, dict[str, Any]]:
    """Read and check a manifest; return it with the whole description of the source.

    Raises:
        DataError: If it is missing or anything in it is not what was written, or is of a wrong
            type or out of range.
    """
    path = folder / MANIFEST
    again = f"delete {folder} and prepare again"
    try:
        content = read_json_object(path, _MAX_BYTES)
        version = content.get("format_version")
        if type(version) is not int or version not in (_UNSEALED_VERSION, MANIFEST_VERSION):
            raise DataError(f"{path} has format {version}, not {MANIFEST_VERSION}; {again}")
        content = content if version == _UNSEALED_VERSION else unsealed(content)
        return typed(content, CorpusManifest, path), content["source"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {folder} is no prepared corpus") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {again}") from error
    except RunError as error:
        raise DataError(f"{error}; {again}") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {again}") from error
