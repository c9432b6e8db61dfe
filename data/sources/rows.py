"""Rows of a table to texts, by column or by template."""

import datetime
import decimal
import string
from collections.abc import Iterator, Mapping
from typing import Any

from data.errors import DataError
from data.sources.corpus import Document
from settings.data import DataSettings

# Rows may be books: a thousand of half a megabyte would not be little memory.
ROWS_AT_ONCE = 128


class Written(str):
    """A number as its file writes it, digit for digit; not a text."""

    __slots__ = ()


class RowTexts:
    """Takes the text out of rows.

    Args:
        settings: Column, or template of columns.
        source: Where the rows are from, for messages: "FILE" or "DATASET split NAME".
        alternative: What else to do where a column is missing, for messages.
    """

    def __init__(self, settings: DataSettings, source: str, alternative: str = "") -> None:
        self._alternative = alternative
        self.num_rows = 0
        self._source = source
        self._template = settings.text_template
        if self._template is None:
            self._pieces = [("", settings.text_column)]
        else:
            self._pieces = [
                (literal, name or "")
                for literal, name, _, _ in string.Formatter().parse(self._template)
            ]
        self.columns = list(dict.fromkeys(name for _, name in self._pieces if name))
        """The columns that are read."""

    def of_row(self, row: dict[str, Any]) -> Document:
        """Return the text of the next row, column -> value.

        Raises:
            DataError: If a column is missing or a value is no text.
        """
        self.num_rows += 1
        where = f"{self._source} row {self.num_rows}"
        for column in self.columns:
            if column not in row:
                key = "data.text_template" if self._template else "data.text_column"
                place = where if self.num_rows > 1 else self._source
                there = f"its columns are {', '.join(row)}" if row else "it has none"
                raise DataError(
                    f"{place} has no column {column!r}; {there}: set {key}{self._alternative}"
                )
            problem = bad_text(row[column], allow_numbers=self._template is not None)
            if problem:
                raise DataError(f"{where}: {column!r} {problem}; correct or remove it")
        if self._template is None:
            return Document(row[self.columns[0]], where)
        text = "".join(
            literal + (as_written(row[name]) if name else "") for literal, name in self._pieces
        )
        return Document(text, where)


def bad_text(value: Any, *, allow_numbers: bool = False) -> str | None:
    """Say what is wrong with a value of a text column; None if nothing.

    Args:
        value: Of a row.
        allow_numbers: Take numbers, truth values, dates and times, too, as a template does.
    """
    if value is None:
        return "is null"
    if isinstance(value, Written):
        return None if allow_numbers else "is a number, not a string"
    if isinstance(value, str):
        return None
    numbers = int | float | decimal.Decimal | datetime.date | datetime.time
    if allow_numbers and isinstance(value, numbers):
        return None
    return f"is {type(value).__name__}, not a string"


def as_written(value: Any) -> str:
    """Write a value as its file does: true, 1, 2.50, 2021-03-01, 2021-03-01T12:00:00."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def rows_of(
    columns: dict[str, list[Any]], types: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, column -> value; narrow numbers as these are written.

    0.1 as a float32 is 0.10000000149011612 as Python's float.

    Args:
        columns: Their values.
        types: Of the columns; float32 and float16 are written so.
    """
    import numpy as np

    for column, values in columns.items():
        if types.get(column) in ("float32", "float16"):
            kind = np.dtype(types[column]).type
            columns[column] = [v if v is None else Written(str(kind(v))) for v in values]
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))
