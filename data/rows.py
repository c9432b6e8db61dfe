"""Rows of a table to texts, by column or by template."""

import string
from collections.abc import Iterator
from typing import Any

from data.errors import DataError
from data.settings import DataSettings

# Rows may be books: a thousand of half a megabyte would not be little memory.
ROWS_AT_ONCE = 128


class RowTexts:
    """Takes the text out of rows.

    Args:
        settings: Column, or template of columns.
        source: Where the rows are from, for messages: "FILE" or "DATASET split NAME".
        column: Instead of the settings' choice, where a format has but one column.
    """

    def __init__(self, settings: DataSettings, source: str, column: str | None = None) -> None:
        self.num_rows = 0
        self._source = source
        self._template = settings.text_template if column is None else None
        if self._template is None:
            self._pieces = [("", column or settings.text_column)]
        else:
            self._pieces = [
                (literal, name or "")
                for literal, name, _, _ in string.Formatter().parse(self._template)
            ]

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(name for _, name in self._pieces if name))

    def of_batch(self, batch: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
        """Yield text and place of each row of a batch, column -> values.

        Raises:
            DataError: If a column is missing or a value is no text.
        """
        for column in self.columns:
            if column not in batch:
                key = "data.text_template" if self._template else "data.text_column"
                raise DataError(
                    f"{self._source} has no column {column!r}; its columns are "
                    f"{', '.join(batch)}: set {key}"
                )
        for row in range(len(batch[self.columns[0]])):
            self.num_rows += 1
            where = f"{self._source} row {self.num_rows}"
            values = {column: batch[column][row] for column in self.columns}
            for column, value in values.items():
                problem = bad_text(value, allow_numbers=self._template is not None)
                if problem:
                    raise DataError(f"{where}: {column!r} {problem}; correct or remove it")
            yield (
                "".join(
                    literal + (str(values[name]) if name else "") for literal, name in self._pieces
                ),
                where,
            )


def bad_text(value: Any, *, allow_numbers: bool = False) -> str | None:
    """Say what is wrong with a value of a text column; None if nothing."""
    if value is None:
        return "is null"
    if isinstance(value, str) or (allow_numbers and isinstance(value, int | float)):
        return None
    return f"is {type(value).__name__}, not a string"
