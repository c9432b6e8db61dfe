"""Corpora: documents by split, whatever the source."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import DataError
from data.splits import TEST, TRAIN, VALIDATION, label_of, split_by_hash
from settings.data import DataSettings


@dataclass(slots=True)
class Document:
    """A text and where it was found, for messages."""

    text: str
    where: str


@dataclass
class Part:
    """Documents that are read together.

    Attributes:
        split: Where they go; None: train or validation, by the hash of each text.
        read: Opens the part and yields its documents in order.
    """

    split: str | None
    read: Callable[[], Iterator[Document]]


@dataclass
class Corpus:
    """Documents by split.

    Attributes:
        settings: What it was opened with.
        parts: What there is to read; reading all of them reads each document once.
        name: Its name among several that are mixed; '' where there is one.
        description: What was read, for the manifest: source, path, configuration, revision, files.
        notes: Lines the user should see, such as files that are not used.
        text_bytes: UTF-8 bytes of all texts, as far as known before reading them.
        text_bytes_are_known: Whether that is of the texts alone, and not a guess.
        account: Adds to the description, once all is read, what is known of each part then: takes
            the number of documents taken from each.
    """

    settings: DataSettings
    parts: list[Part]
    name: str = ""
    description: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    text_bytes: int | None = None
    text_bytes_are_known: bool = False
    account: Callable[[Sequence[int]], dict[str, Any]] | None = None

    def described(self, documents: Sequence[int]) -> dict[str, Any]:
        """Return the description of what was read.

        Args:
            documents: Taken from each part.

        Raises:
            DataError: If a part is no longer what was read.
        """
        return self.description | (self.account(documents) if self.account else {})

    @property
    def key(self) -> str:
        """Where its settings stand, for messages."""
        return f"data.corpora.{self.name}" if self.name else "data"

    @property
    def is_split_by_hash(self) -> bool:
        """Whether some documents are held out by their hash."""
        return any(part.split is None for part in self.parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train and validation, and test where the source has it."""
        named = {part.split for part in self.parts}
        if self.is_split_by_hash:
            named |= {TRAIN, VALIDATION}
        return tuple(split for split in (TRAIN, VALIDATION, TEST) if split in named)

    def label(self, split: str) -> str:
        """Name one of its splits among those of all corpora."""
        return label_of(split, self.name)

    def split_of(self, part: Part, document: Document) -> str:
        """Return where a document of one of the parts goes."""
        if part.split is not None:
            return part.split
        key = document.text.encode("utf-8", "surrogatepass")
        return split_by_hash(key, self.settings.validation_fraction)

    def documents(self, split: str) -> Iterator[str]:
        """Yield the texts of one split.

        Raises:
            DataError: If there is no such split, or something cannot be read.
        """
        if split not in self.splits:
            raise DataError(f"no split {split!r}; there are {', '.join(self.splits)}")
        for part in self.parts:
            if part.split in (split, None):
                yield from (
                    document.text
                    for document in part.read()
                    if document.text and self.split_of(part, document) == split
                )


def join_rows(
    rows: Iterable[Document], document_start: str | None, line_end: str = "\n"
) -> Iterator[Document]:
    """Join consecutive rows into documents.

    Args:
        rows: Rows in order.
        document_start: Regular expression for `re.match`; a row that matches begins a document.
            It sees every end of a line as a newline. Blank rows before the first match belong to
            the first document. None: a row is a document.
        line_end: What a row without a newline gets; '' where rows are the lines of a text.

    Yields:
        Documents.
    """
    if document_start is None:
        yield from rows
        return
    starts = re.compile(document_start)
    lines: list[str] = []
    where = ""
    blank = True
    for row in rows:
        text = row.text
        seen = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
        if lines and not blank and starts.match(seen):
            yield Document("".join(lines), where)
            lines, blank = [], True
        if not lines:
            where = row.where
        lines.append(text if text.endswith("\n") else text + line_end)
        blank = blank and not text.strip()
    if lines:
        yield Document("".join(lines), where)
