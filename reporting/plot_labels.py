"""Names written beside what they name in a plot, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

LINE_HEIGHT = 0.2  # of a label in a margin, in inches
_FONT_SIZE = 9.5
_LONGEST = 26  # characters
_NEAR = 8  # points from a label to its point; farther ones get a line

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""


class LineEnd(NamedTuple):
    """The last point of a line, in the units of the axes, and what to write there."""

    x: float
    y: float
    colour: str
    label: str


class Anchor(NamedTuple):
    """A point to name, and the vertical interval drawn through it, in the transform's units."""

    x: float
    y: float
    low: float
    high: float
    transform: Transform
    label: str


def short(name: str) -> str:
    """Return a name that a plot has room for."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def label_ends(figure: Figure, axes: Axes, ends: Sequence[LineEnd], ink: str) -> None:
    """Write labels in the right margin, in the order of the lines that end there.

    Args:
        figure: Of the axes.
        axes: With their final limits and scales.
        ends: Of the lines.
        ink: The text's colour; the line that leads to it has that of the end.
    """
    height = figure.get_figheight() - 1.2  # of the axes, about: title, ticks and key take the rest
    to_axes = axes.transData + axes.transAxes.inverted()
    order = sorted(ends, key=lambda end: end.y)
    wanted = [float(to_axes.transform((end.x, end.y))[1]) for end in order]
    for end, place in zip(order, spread(wanted, LINE_HEIGHT / height), strict=True):
        leader = {"arrowstyle": "-", "color": end.colour, "linewidth": 0.9}
        axes.annotate(
            end.label,
            (end.x, end.y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            color=ink,
            fontsize=_FONT_SIZE,
            annotation_clip=False,
            parse_math=False,  # a name may hold dollars
            arrowprops={**leader, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 3},
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending places in [0, 1] apart to at least `gap`, by the least sum of squares.

    They leave [0, 1] only where it has no room for all.
    """
    blocks: list[list[float]] = []  # of places that touch: where each wants the first of all
    for index, place in enumerate(wanted):
        blocks.append([place - index * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    highest = 1 - (len(wanted) - 1) * gap
    starts = [max(0.0, min(_mean(block), highest)) for block in blocks for _ in block]
    return [start + index * gap for index, start in enumerate(starts)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def label_points(
    figure: Figure, axes: Axes, anchors: Sequence[Anchor], lines: Sequence[Box], ink: str
) -> None:
    """Write each label beside its point, where it covers least of what is drawn.

    Args:
        figure: Of the axes; laid out.
        axes: With their final limits and scales.
        anchors: The points.
        lines: What else is drawn.
        ink: The text's colour.
    """
    unit = figure.dpi / 72
    places = [a.transform.transform([(a.x, a.low), (a.x, a.y), (a.x, a.high)]) for a in anchors]
    drawn = list(lines)
    for (x, low), (_, y), (_, high) in places:
        drawn.append((x - 3 * unit, low, x + 3 * unit, high))
        drawn.append((x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit))
    left, bottom, right, top = axes.get_window_extent().extents
    inside: Box = (left, bottom, right, top)
    for anchor, (_, (x, y), _) in zip(anchors, places, strict=True):
        # Written once to be measured.
        written = axes.text(0, 0, anchor.label, fontsize=_FONT_SIZE, parse_math=False)
        extent = written.get_window_extent()
        written.remove()
        half = (extent.width / 2, extent.height / 2)
        options = [
            (place, _box_around(x + place.right, y + place.up, half))
            for place in _places(half, unit)
        ]
        place, box = min(
            options, key=lambda option: _cost(option[0], option[1], drawn, inside, unit)
        )
        drawn.append(box)
        leader = {"arrowstyle": "-", "color": ink, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
        axes.annotate(
            anchor.label,
            (anchor.x, anchor.y),
            xycoords=anchor.transform,
            xytext=(place.right / unit, place.up / unit),
            textcoords="offset points",
            ha="center",
            va="center",
            color=ink,
            fontsize=_FONT_SIZE,
            zorder=5,
            parse_math=False,
            arrowprops=leader if place.distance > _NEAR else None,
        )


class _Place(NamedTuple):
    """Where a label's centre may be, from its point, in pixels; the distance is in points."""

    right: float
    up: float
    distance: int


def _places(half: tuple[float, float], unit: float) -> list[_Place]:
    """Return the places to try, the preferred ones first."""
    sides = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
    found = []
    for distance in (_NEAR, 16, 26, 38):
        for right, up in sides:
            reach = distance * unit * (0.6 if right and up else 1)
            found.append(_Place(right * (reach + half[0]), up * (reach + half[1]), distance))
    return found


def _box_around(x: float, y: float, half: tuple[float, float]) -> Box:
    return (x - half[0], y - half[1], x + half[0], y + half[1])


def _cost(place: _Place, box: Box, drawn: Sequence[Box], inside: Box, unit: float) -> float:
    """Return the area covered; what leaves the axes counts ten times, and distance a little."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    covered = sum(_overlap(box, other) for other in drawn)
    return covered + 10 * (area - _overlap(box, inside)) + place.distance * unit * unit


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
