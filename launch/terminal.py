"""What is printed, whoever wrote it and whoever reads it: it commands no terminal, ends no job."""

import contextlib
import io
import os
import re
import select
import sys
import textwrap
from typing import TextIO

from guards.printable import printable

_NARROWEST = 20
"""Columns; of a terminal that says it has fewer, nothing is known."""
# What a user may copy stays in one piece: what is in backticks, and a command with its arguments.
_IN_ONE_PIECE = re.compile(r"`[^`]*`|\bpython (?:-m )?[\w./]+(?: -m\b| [\w./+@~-]+=[^\s;,)]+)*")
_HELD_TOGETHER = "\ue000"  # a space that is none to textwrap; nobody writes this character
_lost: dict[int, OSError] = {}  # why nothing is written any more, by number of the stream


def say_nothing(line: str) -> None:
    """Print nothing: what a rank other than 0 has to say, rank 0 prints."""


def say(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print text that anybody may have written: nothing in it commands the terminal.

    On a terminal, sentences are broken at words and stand above a progress bar.

    Args:
        text: Any.
        end: What follows it; text that something else than a new line follows is not broken.
        file: Where to; stdout if not given.
    """
    stream = sys.stdout if file is None else file
    text = printable(text)
    if end == "\n" and (columns := columns_of(stream)):
        text = wrapped(text, columns)
    with _above_the_bar(stream):
        print(text, end=end, file=stream, flush=True)


def announce(line: str) -> None:
    """Print on stderr what is no result: what takes a while, what was left out."""
    say(line, file=sys.stderr)


def complain(message: object) -> None:
    """Print one line on stderr."""
    say(f"kvlab: {' '.join(str(message).split())}", file=sys.stderr)


def outlive_readers() -> None:
    """Let no write to stdout or stderr fail from now on, whoever writes, this code or a library.

    Where a pipe's reader is gone, a device is full or a terminal is closed, the rest is dropped.
    Letters that the encoding lacks are escaped.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue  # a notebook's, say
        if os.name != "posix" or _number_of(stream) != number:
            stream.reconfigure(errors="backslashreplace")
            continue
        stream.flush()
        replaced = io.TextIOWrapper(
            io.BufferedWriter(_Outlasting(number, "wb", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, replaced)


def is_read() -> bool:
    """Tell whether what is printed on stdout still goes anywhere."""
    return 1 not in _lost


def lost_output() -> OSError | None:
    """Return why stdout does not hold all; None if it does, or if its reader wanted no more."""
    error = _lost.get(1)
    return None if isinstance(error, BrokenPipeError) else error


def is_whole() -> bool:
    """Tell whether stdout holds all that was printed; if not, complain."""
    sys.stdout.flush()
    if (error := lost_output()) is None:
        return True
    complain(f"stdout: {error.strerror}; not all of the output could be written to it")
    return False


def _number_of(stream: io.TextIOWrapper) -> int | None:
    """Return a stream's file descriptor; None if it has none, as in a test."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def wrapped(text: str, columns: int) -> str:
    """Break lines at words; those that are laid out with spaces, such as a table's, stay.

    Args:
        text: Lines.
        columns: That a line may have; a longer word or command keeps its line to itself.
    """
    return "\n".join(_broken(line, columns) for line in text.split("\n"))


def _broken(line: str, columns: int) -> str:
    if len(line) <= columns or "  " in line or line[:1] in (" ", "|"):
        return line
    line = _IN_ONE_PIECE.sub(lambda found: found[0].replace(" ", _HELD_TOGETHER), line)
    broken = textwrap.fill(
        line,
        columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return broken.replace(_HELD_TOGETHER, " ")


def columns_of(stream: TextIO) -> int:
    """Return the width of a terminal; 0 of anything else, or where it is not known."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0
    return columns if columns >= _NARROWEST else 0


def _above_the_bar(stream: TextIO) -> contextlib.AbstractContextManager[None]:
    """Take a progress bar away while something is printed, if there can be one."""
    if "tqdm" not in sys.modules:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=stream)


class _Outlasting(io.FileIO):
    """A stream of this process that drops what it cannot write."""

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        """Write, or drop, some bytes; returns how many."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # a pipe that does not block
            return written
        except OSError as error:
            _lost[self.fileno()] = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes
