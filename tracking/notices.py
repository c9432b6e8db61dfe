"""How this package tells the user something without failing."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of text without the newline."""


def to_stderr(line: str) -> None:
    """Write one line to standard error, where it cannot mix with results on standard output."""
    sys.stderr.write(f"{line}\n")
