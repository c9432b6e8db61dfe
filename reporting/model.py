"""What a report is made of: tables, figures and lists, described once for every medium."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from comparing.for_reports import Row
from comparing.verdicts import words_of

Medium = Literal["report", "terminal"]
Kind = Literal["number", "word", "interval", "verdict"]
Theme = Literal["light", "dark"]
Target = Path | IO[bytes]
"""A PNG, PDF or SVG file, or a stream for SVG."""
Plot = Callable[[Sequence[Target], Theme], None]
"""Draws a figure to each target."""


@dataclass(frozen=True)
class Column:
    """A column of a table: what it shows of a row, and how it is headed.

    Attributes:
        key: Of the row; also the column's name.
        title: Its heading.
        show: Formats a value that is not None.
        value: Gets the value from a row; by default that of the key.
        part: Heading over neighbouring columns on a page.
        below: Where lines are short, as on a page, it stands below the column before it.
        label: What stands before a value there.
        kind: A number is aligned to the right, an interval is one of the column before.
        short: Its heading where there is little room.
        meaning: What the note below the table says of it.
        on: Where it is shown; in reports and on terminals if not given.
    """

    key: str
    title: str
    show: Callable[[Any], str] = str
    value: Callable[[Row], Any] | None = None
    part: str = ""
    below: bool = False
    label: str = ""
    kind: Kind = "number"
    short: str = ""
    meaning: str = ""
    on: Medium | None = None

    def cell(self, row: Row) -> str | None:
        """Return what it shows of a row; None where there is nothing."""
        value = row.get(self.key) if self.value is None else self.value(row)
        return None if value is None else self.show(value)

    def tone(self, text: str) -> str:
        """Return how a verdict is coloured: "good", "bad", "even" or not."""
        return words_of(text).tone if self.kind == "verdict" else ""


@dataclass(frozen=True)
class Table:
    """Rows and what is shown of them; the first column names them."""

    kind: ClassVar[str] = "table"
    caption: str
    rows: Sequence[Row]
    described: Sequence[Column]
    is_folded: bool = False

    def columns(self, medium: Medium = "report") -> list[Column]:
        """Return the columns of a medium, without those that are empty for every row."""
        return [
            column
            for column in self.described
            if column.on in (None, medium)
            and any(column.cell(row) is not None for row in self.rows)
        ]

    def stacked(self, medium: Medium = "report") -> list[tuple[Column, list[Column]]]:
        """Return each column with those that stand below it."""
        found: list[tuple[Column, list[Column]]] = []
        for column in self.columns(medium):
            if column.below and found:
                found[-1][1].append(column)
            else:
                found.append((column, []))
        return found

    def parts(self) -> list[tuple[str, int]]:
        """Return the headings over neighbouring columns, each with how many it is over."""
        found: list[tuple[str, int]] = []
        for column, _ in self.stacked()[1:]:
            if found and found[-1][0] == column.part:
                found[-1] = (column.part, found[-1][1] + 1)
            else:
                found.append((column.part, 1))
        return found

    def meanings(self, medium: Medium = "report") -> str:
        """Explain the columns that need it, in a sentence each."""
        explained = (column for column in self.columns(medium) if column.meaning)
        return " ".join(f"{column.title}: {column.meaning}." for column in explained)


@dataclass(frozen=True)
class Figure:
    """A plot, with what it shows in words and a caption."""

    kind: ClassVar[str] = "figure"
    name: str
    plot: Plot
    words: str
    caption: Sequence[str] = ()


@dataclass(frozen=True)
class Bullets:
    """A list with a title."""

    kind: ClassVar[str] = "bullets"
    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    kind: ClassVar[str] = "facts"
    items: Mapping[str, str]
    is_code: bool = False


@dataclass(frozen=True)
class Samples:
    """Text of models, by name."""

    kind: ClassVar[str] = "samples"
    items: Mapping[str, str]


Part = str | Table | Figure | Bullets | Facts | Samples


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading.

    Attributes:
        key: Its anchor on a page.
        title: Its heading.
        parts: In order; a string is a paragraph.
        level: Of the heading.
    """

    key: str
    title: str
    parts: Sequence[Part]
    level: int = 2
