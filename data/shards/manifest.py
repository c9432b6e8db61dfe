"""The manifest of a prepared corpus: what it states, field by field."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.disk import write_bytes_synced
from data.errors import DataError
from data.splits import TRAIN, VALIDATION, label_of
from data.tokenizing.tokenizer import TOKENIZER_FILES
from files.sealed import sealed, unsealed
from files.strict_json import read_json_object
from files.synced import fsync_folder

MANIFEST = "manifest.json"
# Of the manifest alone: the name and the fingerprint of prepared data do not depend on it.
MANIFEST_VERSION = 3
# Read, too: without a hash of its own, but with those of all files.
_UNSEALED_VERSION = 2
# It lists every source file; a million of them fit.
_MAX_BYTES = 2**29
_MAX_VOCABULARY = 2**32

Value = TypeVar("Value")


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

    documents: int
    tokens: int
    utf8_bytes: int
    words: int
    lost_bytes: int = 0


class ShardEntry(NamedTuple):
    """A shard's file name, number of tokens and sha256."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest states, each value of its type and in its range.

    Attributes:
        name: The corpus' label.
        source: What was read.
        vocab_size: Number of token ids.
        end_of_document_id: Token after each document.
        tokenizer_sha256: Hashes of the tokenizer's files, by name.
        weights: Share of each corpus of a mixture in training.
        splits: Sizes by split.
        shards: Files by split, in order.
        leaks: Documents of one split that are also in another.
        dropped_leaks: Whether those of the training split were left out.
        baselines: Perplexities of count models on the validation split.
    """

    name: str
    source: dict[str, Any]
    vocab_size: int
    end_of_document_id: int
    tokenizer_sha256: dict[str, str]
    weights: dict[str, float]
    splits: dict[str, SplitCounts]
    shards: dict[str, list[ShardEntry]]
    leaks: dict[str, int]
    dropped_leaks: bool
    baselines: dict[str, float]


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest, whole or not at all.

    Args:
        folder: The prepared corpus.
        content: All of it but the version and its own hash.

    Raises:
        DataError: If there is no room.
        OSError: If the folder may not be written to.
    """
    whole = sealed({"format_version": MANIFEST_VERSION, **content})
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    new = folder / f"{MANIFEST}.new"
    # A file's name may hold bytes that are no text.
    write_bytes_synced(new, text.encode("utf-8", "backslashreplace"))
    fsync_folder(folder)
    new.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

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
        return _manifest(content if version == _UNSEALED_VERSION else unsealed(content))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {folder} is no prepared corpus") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {again}") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {again}") from error


def _manifest(content: dict[str, Any]) -> Manifest:
    tokenizer = _get(content, "tokenizer", _mapping)
    vocab_size = _get(tokenizer, "vocab_size", _whole_number)
    end = _get(tokenizer, "end_of_document_id", _whole_number)
    if not end < vocab_size <= _MAX_VOCABULARY:
        raise ValueError(f"'end_of_document_id' {end} is not below 'vocab_size' {vocab_size}")
    hashes = _get(tokenizer, "sha256", _mapping)
    settings = _get(_get(content, "settings", _mapping), "data", _mapping)
    splits = _get(content, "splits", _mapping_of(_mapping))
    weights = _get(content, "weights", _mapping_of(_positive))
    for name in ("", *weights):
        for split in (TRAIN, VALIDATION):
            _get(splits, label_of(split, name), _mapping)
    baselines = _get(content, "baselines", _mapping_of(_positive))
    for key in ("unigram_perplexity", "bigram_perplexity", "counted_train_tokens"):
        _get(baselines, key, _positive)
    return Manifest(
        name=_get(content, "name", _text),
        source=_get(content, "source", _source),
        vocab_size=vocab_size,
        end_of_document_id=end,
        tokenizer_sha256={name: _get(hashes, name, _sha256) for name in TOKENIZER_FILES},
        weights=weights,
        splits={split: _counts(split, entry) for split, entry in splits.items()},
        shards={
            split: [_shard(_mapping(shard)) for shard in _get(entry, "shards", _list)]
            for split, entry in splits.items()
        },
        leaks=_get(content, "leaks", _mapping_of(_whole_number)),
        dropped_leaks=_get(settings, "drop_leaked_documents", _truth),
        baselines=baselines,
    )


def _counts(split: str, entry: dict[str, Any]) -> SplitCounts:
    entry = {"lost_bytes": 0, **entry}
    counts = SplitCounts(
        **{key: _get(entry, key, _whole_number) for key in SplitCounts.__dataclass_fields__}
    )
    if counts.lost_bytes > counts.utf8_bytes:
        raise ValueError(
            f"split {split!r} states {counts.lost_bytes} lost of {counts.utf8_bytes} bytes"
        )
    # An empty text is no document, and each one has its end.
    if min(counts.tokens, counts.utf8_bytes) < counts.documents:
        raise ValueError(
            f"split {split!r} states {counts.documents} documents in {counts.tokens} tokens and "
            f"{counts.utf8_bytes} bytes"
        )
    if split == VALIDATION and not counts.documents:
        raise ValueError(f"split {split!r} holds no document")
    return counts


def _shard(entry: dict[str, Any]) -> ShardEntry:
    name = _get(entry, "file", _text)
    if not re.fullmatch(r"[^/\\\x00]+\.npy", name):
        raise ValueError(f"shard {name!r} lies outside the folder or is no .npy file")
    return ShardEntry(name, _get(entry, "tokens", _whole_number), _get(entry, "sha256", _sha256))


def _source(value: object) -> dict[str, Any]:
    source = _mapping(value)
    corpora = _mapping_of(_mapping)(source.get("corpora", {}))
    _get(source, "source", _text)
    for one in (source, *corpora.values()):
        for key in ("commit", "revision"):
            if one.get(key) is not None:
                _get(one, key, _text)
    return source


def _get(holder: dict[str, Any], key: str, check: Callable[[object], Value]) -> Value:
    """Return a value of the right type.

    Raises:
        ValueError: If it is missing or of another type; with the key.
    """
    if key not in holder:
        raise ValueError(f"{key!r} is missing")
    try:
        return check(holder[key])
    except ValueError as error:
        raise ValueError(f"{key!r}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is needed, not {type(value).__name__}")
    return value


def _sha256(value: object) -> str:
    if not re.fullmatch("[0-9a-f]{64}", _text(value)):
        raise ValueError("this is no sha256")
    return _text(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false is needed, not {type(value).__name__}")
    return value


def _whole_number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a whole number, at least 0, is needed")
    return value


def _positive(value: object) -> float:
    # Not a comparison with 0 alone: an integer may be too large for a float.
    if type(value) is float and 0 < value < math.inf:
        return value
    if type(value) is int and 0 < value < 2**63:
        return value
    raise ValueError("a number above 0 is needed")


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list is needed, not {type(value).__name__}")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"an object is needed, not {type(value).__name__}")
    return value


def _mapping_of(check: Callable[[object], Value]) -> Callable[[object], dict[str, Value]]:
    def checked(value: object) -> dict[str, Value]:
        return {key: _get(_mapping(value), key, check) for key in _mapping(value)}

    return checked
