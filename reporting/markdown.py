"""A report's sections and tables as Markdown."""

import re
from collections.abc import Collection, Sequence

from guards.printable import as_code
from reporting.model import Bullets, Facts, Figure, Part, Samples, Section, Table

_NOTHING = "-"


def markdown(title: str, headline: str, sections: Sequence[Section], drawn: Collection[str]) -> str:
    """Draw a report.

    Args:
        title: Its name.
        headline: What was found.
        sections: In order.
        drawn: Names of the figures whose PNG files lie in the same folder.
    """
    parts = [f"# {title}", headline]
    for section in sections:
        parts.append(f"{'#' * section.level} {section.title}")
        parts += [_part(part, drawn) for part in section.parts]
    return "\n\n".join(filter(None, parts)) + "\n"


def _part(part: Part, drawn: Collection[str]) -> str:
    if isinstance(part, Table):
        summary = f"<details><summary>{part.caption}</summary>"
        return f"{summary}\n\n{table(part)}\n\n</details>" if part.is_folded else table(part)
    if isinstance(part, Figure):
        image = f"![{part.words}]({part.name}.png)"
        return "\n\n".join([image, *part.caption]) if part.name in drawn else ""
    if isinstance(part, Bullets):
        return "\n".join([f"{part.title}:\n", *(f"- {item}" for item in part.items)])
    if isinstance(part, Facts):
        return "\n".join(f"- {name}: {as_code(value)}" for name, value in part.items.items())
    if isinstance(part, Samples):
        return "\n\n".join(f"{name}:\n\n{_fenced(text)}" for name, text in part.items.items())
    return part


def table(described: Table) -> str:
    """Draw a table, words to the left and numbers to the right."""
    columns = described.columns()
    rows = [[_cell(column.cell(row)) for column in columns] for row in described.rows]
    lines = [[_cell(column.title) for column in columns], *rows]
    widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
    left = [column.kind in ("word", "verdict") for column in columns]
    rule = [
        f":{'-' * (width - 1)}" if is_left else f"{'-' * (width - 1)}:"
        for width, is_left in zip(widths, left, strict=True)
    ]
    padded = [
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _cell(text: str | None) -> str:
    """Show a cell on one line, without markup."""
    if text is None:
        return _NOTHING
    return re.sub(r"([|`<\[\]\\])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Quote text that may hold fences itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.rstrip()}\n{fence}"
