"""How this package reports something to the user without failing."""

import sys
from collections.abc import Callable, Sequence

Say = Callable[[str], None]
"""Takes one line of text without the newline."""


def to_stderr(line: str) -> None:
    """Write one line to standard error, where it cannot mix with results on standard output."""
    sys.stderr.write(f"{line}\n")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out a few rows of text: the first column to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(first), *(c.rjust(n) for c, n in zip(row[1:], others, strict=True))]
        )
        for row in rows
    )
