"""Tables and sentences on a terminal: no wider than it is, coloured only where it can be."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from comparing.across_tokenizers import ACROSS_NOTE, ACROSS_TITLE, across_tokenizers
from comparing.labels import NONE
from comparing.variants import Group, differing_fields
from guards.printable import printable
from reporting.contents import DECODE_NOTE, TASK_NOTE, protocol_line, text_of
from reporting.cost_tables import decode_tables
from reporting.headline import headline, pairing_notes, too_little_text
from reporting.model import Column, Row, Table
from reporting.names import folded, width_of
from reporting.tables import across_table, comparison, pair_table, task_tables

if TYPE_CHECKING:
    from rich.console import Console

USUAL_WIDTH = 100
"""Columns of what is no terminal."""
_GAP = 2
_NAME_WIDTH = 8  # columns that a name has at least, and where there is room enough
_NAME_ROOM = 24
_MOST_PAIRS = 6  # more of them are in the report only
_HELD_TOGETHER = "\ue000"  # a space that is none to rich; nobody writes this character
_STYLES = {"good": "green", "bad": "red"}


@dataclass(frozen=True)
class Screen:
    """What a stream can show: columns, letters beyond ASCII, and colour."""

    width: int = USUAL_WIDTH
    is_ascii: bool = False
    has_colour: bool = False

    def text(self, text: str) -> str:
        """Return text on one line that commands no terminal, in letters that it has."""
        text = " ".join(printable(text).split())
        for letter, plain in (("…", "."), ("±", "+-"), (NONE, "-")) if self.is_ascii else ():
            text = text.replace(letter, plain)
        return text.encode("ascii", "backslashreplace").decode() if self.is_ascii else text


def screen_of(stream: TextIO, width: int | None = None) -> Screen:
    """Return what a stream shows; `NO_COLOR` and `TERM=dumb` ask for no colour."""
    is_terminal = stream.isatty()
    if width is None:
        try:
            width = os.get_terminal_size(stream.fileno()).columns if is_terminal else 0
        except (OSError, ValueError):
            width = 0
    wants = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    return Screen(
        width=width if width >= 20 else USUAL_WIDTH,
        is_ascii=not encoding.replace("-", "").startswith("utf"),
        has_colour=is_terminal and wants,
    )


def print_comparison(
    groups: Sequence[Group],
    folder: Path | None = None,
    stream: TextIO | None = None,
    width: int | None = None,
) -> None:
    """Print what a comparison found, as wide as the terminal.

    Args:
        groups: What was compared.
        folder: Of the report, which has the rest.
        stream: Where to; stdout if not given.
        width: In columns; the terminal's, or `USUAL_WIDTH`, if not given.
    """
    stream = stream or sys.stdout
    screen = screen_of(stream, width)
    parts = [part for group in groups for part in _of_group(group, groups[0], screen)]
    results = [result for group in groups for result in group.results]
    note = [comparison(results).meanings("terminal"), too_little_text(results)]
    parts.append(wrapped(" ".join(filter(None, [*note, *pairing_notes(results)])), screen))
    for found in across_tokenizers(groups):
        caption = f"{ACROSS_TITLE}; {text_of(found)}, {found['utf8_bytes']:,} bytes"
        table = draw(across_table(found["variants"], caption), screen)
        parts += [wrapped(caption, screen), table, wrapped(ACROSS_NOTE, screen)]
    if folder is not None:
        parts.append(printable(f"The rest is in the report: {folder}/report.html"))
    print("\n" + "\n\n".join(parts), file=stream, flush=True)


def print_decoding(
    groups: Sequence[Group], stream: TextIO | None = None, width: int | None = None
) -> None:
    """Print how fast variants decode, a table for each batch."""
    stream = stream or sys.stdout
    screen = screen_of(stream, width)
    parts = [
        part
        for group in groups
        for table in decode_tables(group.results)
        for part in (wrapped(table.caption, screen), draw(table, screen))
    ]
    parts.append(wrapped(DECODE_NOTE, screen))
    print("\n" + "\n\n".join(parts), file=stream, flush=True)


def _of_group(group: Group, first: Group, screen: Screen) -> Iterator[str]:
    """Yield the paragraphs and tables of one protocol."""
    if group is not first:
        fields = differing_fields(first.protocol, group.protocol)
        said = f"In a table of their own, since their protocol cards differ in {fields}:"
        yield wrapped(said, screen)
    if group.runs[0].windows is not None:
        yield wrapped(f"{protocol_line(group.runs[0].row).partition(';')[0]}.", screen)
    yield draw(comparison(group.results), screen)
    tasks = task_tables(group.results)
    for table in tasks:
        yield from (wrapped(f"{table.caption}:", screen), draw(table, screen))
    if tasks:
        yield wrapped(f"{TASK_NOTE} {group.protocol['tasks']}.", screen)
    if 1 < len(group.pairs) <= _MOST_PAIRS:
        yield from ("Every pair:", draw(pair_table(group.pairs), screen))
    if sentences := headline(group.results, group.unranked):
        yield wrapped(sentences, screen)
    # How the intervals were made is in the report.
    if seen := [said for said in group.how_sure if not said.startswith("Seeds:")]:
        yield wrapped(" ".join(seen), screen)
    if group.differs:
        names = "; ".join(difference.partition(":")[0] for difference in group.differs)
        yield wrapped(f"Not equal, apart from the attention: {names}.", screen)


def wrapped(text: str, screen: Screen) -> str:
    """Break a paragraph at words."""
    from rich.text import Text

    held = screen.text(text).replace(" %", f"{_HELD_TOGETHER}%")
    lines = Text(held).wrap(_console(screen), screen.width)
    return "\n".join(line.plain.rstrip() for line in lines).replace(_HELD_TOGETHER, " ")


@dataclass(frozen=True)
class _Laid:
    """A column as it is drawn: its heading, and the lines of each cell with their styles."""

    heading: str
    cells: list[list[tuple[str, str]]]
    is_word: bool

    def natural(self) -> int:
        """Return the width at which no cell is broken."""
        return max((width_of(text) for cell in self.cells for text, _ in cell), default=0)

    def least(self, name_width: int | None) -> int:
        """Return the width at which no number and no word is."""
        natural, heading = self.natural(), max(map(width_of, self.heading.split() or [""]))
        if name_width is not None:
            return max(min(natural, name_width), heading)
        if self.is_word:
            words = (word for cell in self.cells for text, _ in cell for word in text.split())
            natural = max(map(width_of, words), default=0)
        return max(natural, heading)


def draw(table: Table, screen: Screen) -> str:
    """Draw a table that is no wider than the screen.

    Intervals and the like stand in columns of their own where there is room, else below what they
    belong to. What has no room even then follows in a further table with the same names.
    """
    stacked = table.stacked("terminal")
    flat: list[tuple[Column, list[Column]]] = [(c, []) for c in table.columns("terminal")]
    layouts = (
        (_laid(table, flat, screen), _NAME_ROOM),
        (_laid(table, stacked, screen), _NAME_ROOM),
        (_laid(table, stacked, screen, is_narrow=True), _NAME_WIDTH),
    )
    for laid, name_width in layouts:
        least = [column.least(None if n else name_width) for n, column in enumerate(laid)]
        if sum(least) + _GAP * (len(laid) - 1) <= screen.width:
            return _drawn(laid, least, screen)
    blocks: list[list[int]] = []
    for number in range(1, len(laid)):
        room = screen.width - least[0] - sum(least[n] + _GAP for n in (blocks or [[]])[-1])
        if not blocks or least[number] + _GAP > room:
            blocks.append([])
        blocks[-1].append(number)
    return "\n\n".join(
        _drawn([laid[n] for n in (0, *block)], [least[n] for n in (0, *block)], screen)
        for block in blocks
    )


def _laid(
    table: Table,
    columns: Sequence[tuple[Column, Sequence[Column]]],
    screen: Screen,
    *,
    is_narrow: bool = False,
) -> list[_Laid]:
    """Return what is drawn of columns, each with those below it."""
    found = []
    for column, below in columns:
        cells = []
        for row in table.rows:
            shown = ((other.label, other.cell(row)) for other in below)
            further = [screen.text(f"{label} {text}".strip()) for label, text in shown if text]
            cells.append([_styled(column, row, screen), *((text, "dim") for text in further)])
        heading = screen.text((is_narrow and column.short) or column.title)
        found.append(_Laid(heading, cells, column.kind in ("word", "verdict")))
    return found


def _styled(column: Column, row: Row, screen: Screen) -> tuple[str, str]:
    text = column.cell(row)
    return ("-", "") if text is None else (screen.text(text), _STYLES.get(column.tone(text), ""))


def _drawn(laid: Sequence[_Laid], least: Sequence[int], screen: Screen) -> str:
    """Draw columns of which all have the room that they need, and share out what is left."""
    from rich.box import Box
    from rich.table import Table as Grid
    from rich.text import Text

    widths = list(least)
    spare = max(0, screen.width - sum(least) - _GAP * (len(laid) - 1))
    for wanted in (
        [column.natural() for column in laid],
        [width_of(column.heading) for column in laid],
    ):
        for number, width in enumerate(wanted):
            more = min(spare, max(0, width - widths[number]))
            widths[number] += more
            spare -= more
    rule = " -- " if screen.is_ascii else " ── "
    nothing = "    "
    lines = [nothing, nothing, rule, *[nothing] * 5]  # the third is below the headings
    grid = Grid(
        box=Box("\n".join(lines) + "\n", ascii=screen.is_ascii),
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
        header_style="bold",
    )
    for number, (column, width) in enumerate(zip(laid, widths, strict=True)):
        grid.add_column(
            Text(column.heading),
            justify="left" if column.is_word or number == 0 else "right",
            overflow="fold",
            width=width,
        )
    names = folded([cell[0][0] for cell in laid[0].cells], widths[0], screen.text("…"))
    for number, name in enumerate(names):
        cells = [Text("\n".join([name, *(t for t, _ in laid[0].cells[number][1:])]))]
        for column in laid[1:]:
            lines_of = [Text(text, style=style) for text, style in column.cells[number]]
            cells.append(Text("\n").join(lines_of))
        grid.add_row(*cells)
    console = _console(screen)
    with console.capture() as drawn:
        console.print(grid)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _console(screen: Screen) -> "Console":
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        width=screen.width + _GAP,
        force_terminal=screen.has_colour,
        force_jupyter=False,
        color_system="standard" if screen.has_colour else None,
        legacy_windows=False,
        highlight=False,
        emoji=False,
    )
