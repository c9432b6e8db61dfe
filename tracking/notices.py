"""How this package reports something to the user without failing."""

import sys
from collections.abc import Callable, Container, Sequence

Say = Callable[[str], None]
"""Takes one line of text without the newline."""


def to_stderr(line: str) -> None:
    """Write one line to standard error, where it cannot mix with results on standard output."""
    sys.stderr.write(f"{line}\n")


def aligned(rows: Sequence[Sequence[str]], texts: Container[int] = (0,)) -> str:
    """Lay out a few rows in columns.

    Args:
        rows: A cell for each column.
        texts: Numbers of the columns that are aligned to the left; the others are to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{'<' if n in texts else '>'}{width}" for n, width in enumerate(widths)]
    return "\n".join("  ".join(map(format, row, forms)).rstrip() for row in rows)
