"""What is printed, whoever wrote it and whoever reads it: it commands no terminal, ends no job."""

import io
import os
import select
import sys
from typing import TextIO

from guards.printable import printable

_lost: dict[int, OSError] = {}  # why nothing is written any more, by number of the stream


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


def _number_of(stream: io.TextIOWrapper) -> int | None:
    """Return a stream's file descriptor; None if it has none, as in a test."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


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
