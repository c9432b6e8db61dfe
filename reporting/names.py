"""Names broken into lines and shortened, for a column of a terminal."""

import re
from collections.abc import Sequence

_NAME_LINES = 3  # that a name may take


def folded(names: Sequence[str], width: int, mark: str) -> list[str]:
    """Break names where words end; words of longer ones are shortened, their digits never.

    Args:
        names: Of the rows of a table.
        width: Columns that a line may have.
        mark: Stands for what was left out of a word.
    """
    found = []
    for name in names:
        for longest in (len(name), *range(12, 2, -1)):
            word = re.compile(rf"([^\W\d]{{{longest}}})[^\W\d]+")
            pieces = _pieces(word.sub(rf"\1{mark}", name))
            lines = _lines(pieces, width)
            if len(lines) <= _NAME_LINES and all(width_of(p.rstrip()) <= width for p in pieces):
                break
        found.append("\n".join(lines))
    if len(set(found)) < len(set(names)):  # two would look alike
        found = ["\n".join(_lines(_pieces(name), width)) for name in names]
    return found


def _pieces(name: str) -> list[str]:
    """Return the parts of a name that stay on one line: words, numbers, and values with a key."""
    return re.findall(r"[^\W_]+…?(?:[.=]+[^\W_]+…?)*[\W_]*|[\W_]+", name)


def _lines(pieces: Sequence[str], width: int) -> list[str]:
    """Fill lines with parts of a name, a long one in several."""
    from rich.cells import chop_cells

    lines = [""]
    for piece in pieces:
        if width_of(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
        elif width_of(piece.rstrip()) <= width:
            lines.append(piece)
        else:
            key, sign, value = piece.rstrip().partition("=")
            lines += _lines([key + sign, value], width) if value else chop_cells(key + sign, width)
    return [line.rstrip() for line in lines if line.strip()]


def width_of(text: str) -> int:
    """Return the columns that text takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(text)
