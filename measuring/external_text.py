"""The text that external models are scored on, and in whose tokens they read it."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.inspection import split_documents
from data.prepared import PreparedData
from measuring.errors import EvaluationError
from measuring.rows import EvaluatedRun

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Reader:
    """An external model's name, and how it reads text.

    Args:
        name: As it is shown; no run has this name.
        kind: What stands in the place of a run's attention.
        tokenizer: Its own.
        tokenizer_sha256: Hash of it, as `data.tokenizer.save_tokenizer` stores it.
        end_of_document: The token to put behind each document.
    """

    name: str
    kind: str
    tokenizer: "Tokenizer"
    tokenizer_sha256: str
    end_of_document: str

    @property
    def end_of_document_id(self) -> int | None:
        """The id of that token."""
        return self.tokenizer.token_to_id(self.end_of_document)

    def has_tokenizer_of(self, prepared: PreparedData) -> bool:
        """Return whether it reads a corpus as it was prepared."""
        same = prepared.tokenizer_sha256 == self.tokenizer_sha256
        return same and prepared.end_of_document_id == self.end_of_document_id


@dataclasses.dataclass(frozen=True)
class Text:
    """A split's original text, and who has read it.

    Args:
        readings: Prepared corpora of this text, each with the context in which it was read; None
            where nobody says one.
        cache_context: Tokens at which the caches of those who read it are stated; None where nobody
            says so, or they differ.
    """

    readings: list[tuple[PreparedData, int | None]]
    cache_context: int | None = None

    def as_read_by(self, reader: Reader) -> tuple[PreparedData, int | None]:
        """Return the reading with a model's tokenizer; the first if there is none."""
        for prepared, context in self.readings:
            if reader.has_tokenizer_of(prepared):
                return prepared, context
        return self.readings[0]


def texts_of(runs: Iterable[EvaluatedRun], split: str) -> list[Text]:
    """Return each text that runs were scored on, once, whatever their tokenizers."""
    found: dict[tuple[Any, ...], list[tuple[PreparedData, dict[str, Any]]]] = {}
    for run in runs:
        assert run.prepared is not None
        prepared, counts = run.prepared, run.prepared.splits[split]
        key = (prepared.name, prepared.revision, counts.documents, counts.words, counts.utf8_bytes)
        found.setdefault(key, []).append((prepared, run.row["protocol"]))
    texts = []
    for some in found.values():
        stated = {card.get("cache_context") for _, card in some}
        readings = [(prepared, card["context"]) for prepared, card in some]
        texts.append(Text(readings, stated.pop() if len(stated) == 1 else None))
    return texts


class EncodedText:
    """Tokens in memory; `perplexity.Tokens`.

    Args:
        tokens: [n] int64.
    """

    def __init__(self, tokens: npt.NDArray[np.int64]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Return tokens [start, start + length), int64."""
        return self._tokens[start : start + length]

    def fingerprint(self, tokenizer_sha256: str) -> str:
        """Return the hash of all that a model sees of them."""
        digest = hashlib.sha256(tokenizer_sha256.encode())
        digest.update(self._tokens.tobytes())
        return digest.hexdigest()


def encoded(reader: Reader, prepared: PreparedData, split: str) -> tuple[EncodedText, list[str]]:
    """Read the documents of a prepared split in another tokenizer's tokens.

    Returns:
        The tokens, and what a reader of their numbers should know.

    Raises:
        EvaluationError: If the prepared tokens are not the whole text.
    """
    theirs = prepared.tokenizer()
    parts: list[npt.NDArray[np.int64]] = []
    utf8_bytes = changed = 0
    for document in split_documents(prepared.stream(split), prepared.end_of_document_id):
        text = theirs.decode(document.tolist(), skip_special_tokens=False)
        utf8_bytes += len(text.encode())
        ids = reader.tokenizer.encode(text, add_special_tokens=False).ids
        parts.append(np.array([*ids, reader.end_of_document_id], dtype=np.int64))
        # Some put a space before a text, or take the one that is there.
        given_back = reader.tokenizer.decode(ids, skip_special_tokens=False)
        changed += given_back not in (text, f" {text}", text.removeprefix(" "))
    expected = prepared.splits[split].utf8_bytes
    if utf8_bytes != expected:
        raise EvaluationError(
            f"{reader.name} cannot be scored on {prepared.folder}: its tokens decode to "
            f"{utf8_bytes:,} bytes, and the text had {expected:,}, so its tokenizer loses some; "
            "prepare the text with tokenizer=bpe or tokenizer=bytes, or give the model's own"
        )
    notes = [
        f"{reader.name}: its tokenizer does not give back {changed} of {len(parts)} documents as "
        "they were, and what it leaves out costs it nothing: no bits per byte are compared with its"
    ]
    return EncodedText(np.concatenate(parts)), notes if changed else []
