"""What is printed, whoever wrote it: nothing of it commands the terminal."""

import os
import sys
from typing import TextIO

from guards.printable import printable


def say(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print text that anybody may have written: nothing in it commands the terminal.

    Args:
        text: Any.
        end: What follows it.
        file: Where to; stdout if not given.
    """
    print(printable(text), end=end, file=file, flush=True)


def complain(message: object) -> None:
    """Print one line on stderr."""
    try:
        say(f"kvlab: {' '.join(str(message).split())}", file=sys.stderr)
    except OSError:  # the exit status is still to be right
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Drop what a stream takes from now on and still holds: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
