"""Plots of a report. An attention has the same colour and marker in all of them.

Figures come as PNG, PDF or SVG, light or dark; the same numbers give the same file, byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

from measuring.kv_cache import cache_bytes_of, cache_context_of, has_known_cache
from modeling.accounting import CacheCurve
from reporting.errors import PlotError
from reporting.plot_labels import (
    LINE_HEIGHT,
    Anchor,
    Box,
    LineEnd,
    label_ends,
    label_points,
    short,
)

Theme = Literal["light", "dark"]
Target = Path | IO[bytes] | Sequence[Path]
"""A PNG, PDF or SVG file, or several of one figure, or a stream for SVG."""

# Okabe and Ito's palette, which colour-blind readers tell apart; others follow in order.
_STYLES = {
    "mha": ("#000000", "o"),
    "mqa": ("#E69F00", "s"),
    "gqa": ("#009E73", "^"),
    "mla": ("#0072B2", "D"),
    "mla_no_rope": ("#CC79A7", "v"),
    "mha_no_rope": ("#D55E00", "P"),
    "mqa_no_rope": ("#56B4E9", "X"),
    "gqa_tied": ("#8C510A", "d"),
    "mqa_tied": ("#999999", "h"),
    "shared_kv": ("#7B3FA0", "*"),
}
_FURTHER = (("#F0E442", "*"), ("#999999", "h"), ("#8C510A", "d"))
# By arrangement of the layers: a marker, and how far the attention's colour is moved towards white
# (above 0) or black, so that an attention keeps its hue.
_ARRANGED = {
    "window_full": ("<", 0.35),
    "window": (">", 0.55),
    "shared_pairs": ("p", -0.35),
    "shared_upper": ("H", -0.5),
    "shared_last": ("8", -0.2),
}
_ARRANGED_OTHERWISE = ("X", 0.2)


class _Look(NamedTuple):
    """Colours of a theme."""

    theme: Theme
    ink: str
    quiet: str
    grid: str
    face: str


_LOOKS: dict[Theme, _Look] = {
    "light": _Look("light", ink="#1c2024", quiet="#5b636d", grid="#dfe3e8", face="#ffffff"),
    "dark": _Look("dark", ink="#e9ebee", quiet="#a3abb5", grid="#343a42", face="#171a1f"),
}


def style_of(
    attention: str, theme: Theme = "light", layers: str | None = "uniform"
) -> tuple[str, str]:
    """Return the colour and marker of an attention; black is light where the page is dark.

    Args:
        attention: Its registered name, or that of an external model's class.
        theme: Of the page.
        layers: Their arrangement, which changes the shade and the marker; None for an external
            model.
    """
    if attention in _STYLES:
        colour, marker = _STYLES[attention]
    else:
        colour, marker = _FURTHER[sum(attention.encode()) % len(_FURTHER)]
    if layers in (None, "uniform"):
        is_lost = theme == "dark" and colour == "#000000"
        return (_LOOKS["dark"].ink if is_lost else colour), marker
    marker, shift = _ARRANGED.get(str(layers), _ARRANGED_OTHERWISE)
    if theme == "dark" and colour == "#000000":
        colour, shift = _LOOKS["dark"].ink, -abs(shift)
    return _shifted(colour, shift), marker


def _shifted(colour: str, shift: float) -> str:
    """Move a colour a share of the way to white, or with a negative share to black."""
    end = 255 if shift > 0 else 0
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(shift) * (end - part)):02X}" for part in parts)


def _style(row: Mapping[str, Any], theme: Theme) -> tuple[str, str]:
    return style_of(row["attention"], theme, row.get("layers"))


def plot_decode(
    rows: Sequence[dict[str, Any]],
    path: Target,
    theme: Theme = "light",
    batch: int | None = None,
) -> bool:
    """Draw milliseconds per token against the context, a panel for each batch.

    Lines are measured, dotted ones the roofline; hollow markers are contexts longer than those of
    the training.

    Args:
        rows: Of runs or variants, with `decode` as `add_decode_speed` leaves it.
        path: Where.
        theme: Of its colours.
        batch: The only batch to draw; None: all.

    Returns:
        Whether there was anything to draw.
    """
    rows = [row for row in rows if row.get("decode")]
    batches = sorted({point["batch"] for row in rows for point in row["decode"]})
    shown = [found for found in batches if batch in (None, found)]
    if not shown:
        return False
    size = (6.4 * len(shown), _height_for(len(rows)))
    return _write(lambda figure, look: _draw_decode(figure, look, rows, shown), path, theme, size)


def plot_pareto(variants: Sequence[dict[str, Any]], path: Target, theme: Theme = "light") -> bool:
    """Draw perplexity against the bytes of a sequence's cache at the stated context.

    Thick intervals are those over seeds, thin ones those over the text; the line is the lowest
    perplexity at each cache size or less.

    Args:
        variants: Of one protocol; those without a perplexity or a cache that was measured are left
            out, and there must be two.
        path: Where.
        theme: Of its colours.

    Returns:
        Whether there was anything to draw.
    """
    points = [v for v in variants if v["perplexity"] is not None and has_known_cache(v)]
    if len(points) < 2:
        return False
    return _write(lambda figure, look: _draw_pareto(figure, look, points), path, theme, (6.4, 4.6))


def plot_cache(variants: Sequence[dict[str, Any]], path: Target, theme: Theme = "light") -> bool:
    """Draw the bytes of a sequence's cache against its tokens, a line for each variant.

    Markers are what was measured, lines the curve that was fitted to it; vertical lines are the
    trained context and, where it is another, the one at which caches are stated.

    Args:
        variants: Those without `kv_cache_curve` are left out.
        path: Where.
        theme: Of its colours.

    Returns:
        Whether there was anything to draw.
    """
    known = [variant for variant in variants if variant.get("kv_cache_curve")]
    if not known:
        return False
    size = (6.4, _height_for(len(known)))
    return _write(lambda figure, look: _draw_cache(figure, look, known), path, theme, size)


def plot_curves(curves: Mapping[str, dict[str, Any]], path: Target, theme: Theme = "light") -> bool:
    """Draw validation perplexity against the tokens trained on, a line for each variant.

    The line is the mean over seeds (of the logarithms, as the axis shows them) where all of them
    were validated, the band their lowest to highest.

    Args:
        curves: By run name, each with `variant`, `attention`, `layers`, `tokens` and `perplexity`.
        path: Where.
        theme: Of its colours.

    Returns:
        Whether there was anything to draw.
    """
    lines = seed_lines(curves)
    if not lines:
        return False
    size = (6.4, _height_for(len(lines)))
    return _write(lambda figure, look: _draw_curves(figure, look, lines), path, theme, size)


def plot_all(
    folder: Path,
    variants: Sequence[dict[str, Any]],
    curves: Mapping[str, dict[str, Any]],
    suffix: str = "",
) -> list[str]:
    """Write pareto.png, cache.png, curves.png and decode.png where there is something to show.

    Each is in figures/ as well, as a PDF for papers: vectors, and fonts that can be searched.

    Args:
        folder: Where; it exists.
        variants: Of one protocol.
        curves: As for `plot_curves`, of these variants.
        suffix: Of the names, before .png.

    Returns:
        The names of the PNG files written.

    Raises:
        PlotError: If one cannot be drawn.
    """
    plots: dict[str, Callable[[Target], bool]] = {
        "pareto": partial(plot_pareto, variants),
        "cache": partial(plot_cache, variants),
        "curves": partial(plot_curves, curves),
        "decode": partial(plot_decode, variants),
    }
    written = []
    for plot, draw in plots.items():
        name = f"{plot}{suffix}"
        if draw([folder / f"{name}.png", folder / "figures" / f"{name}.pdf"]):
            written.append(f"{name}.png")
    return written


class SeedLine(NamedTuple):
    """A variant's validation perplexity during training."""

    variant: str
    attention: str
    layers: str | None
    seeds: int
    tokens: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def seed_lines(curves: Mapping[str, dict[str, Any]]) -> list[SeedLine]:
    """Gather the curves of runs by variant, at the tokens at which all seeds were validated."""
    runs_of: dict[str, list[dict[str, Any]]] = {}
    for curve in curves.values():
        if not curve["tokens"]:
            continue  # a run without its metrics
        runs_of.setdefault(curve["variant"], []).append(curve)
    lines = []
    for variant, runs in runs_of.items():
        values = [dict(zip(run["tokens"], run["perplexity"], strict=True)) for run in runs]
        tokens = sorted(set.intersection(*(set(by_tokens) for by_tokens in values)))
        if not tokens:
            continue
        at = [[by_tokens[token] for by_tokens in values] for token in tokens]
        mean = [math.exp(math.fsum(map(math.log, found)) / len(found)) for found in at]
        low, high = [min(found) for found in at], [max(found) for found in at]
        kind = runs[0]["attention"], runs[0].get("layers")
        lines.append(SeedLine(variant, *kind, len(runs), tokens, mean, low, high))
    return lines


def pareto_front(variants: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, from the smallest cache up, those that no variant with as small a cache beats."""
    front: list[dict[str, Any]] = []
    order = sorted(variants, key=lambda v: (cache_bytes_of(v), v["perplexity"]))
    for variant in order:
        if not front or variant["perplexity"] < front[-1]["perplexity"]:
            front.append(variant)
    return front


def _height_for(labels: int) -> float:
    """Return a height in inches at which so many labels fit into a margin."""
    return max(4.6, 1.2 + 1.15 * LINE_HEIGHT * labels)


def _write(
    draw: Callable[[Figure, _Look], None],
    path: Target,
    theme: Theme,
    size: tuple[float, float],
) -> Literal[True]:
    """Draw a figure and write it.

    Raises:
        OSError: If the file cannot be written.
        PlotError: If it cannot be drawn.
    """
    look = _LOOKS[theme]
    targets = path if isinstance(path, Sequence) else [path]
    with _explained():
        # Without pyplot: no window system, and no state that outlives the figure.
        with _own_settings():
            from matplotlib import style
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

        # From the defaults, whatever the user's matplotlibrc says: a figure changes for a reason
        # only.
        with style.context(["default", _settings(look)]):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, look)
            drawn = [_rendered(figure, target) for target in targets]
    for target, content in zip(targets, drawn, strict=True):
        if isinstance(target, Path):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        else:
            target.write(content)
    return True


def _rendered(figure: Figure, target: Path | IO[bytes]) -> bytes:
    """Return the figure in the format of the target; a stream takes SVG."""
    stream = BytesIO()
    suffix = target.suffix if isinstance(target, Path) else ".svg"
    if suffix == ".png":
        figure.savefig(stream, format="png", dpi=150)
    elif suffix == ".pdf":
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None})
    else:
        # Transparent: a page has its own ground.
        nothing = {"Date": None, "Creator": None}
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    return stream.getvalue()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say in one line why there is no figure, whatever the library raises.

    Raises:
        PlotError: In its place.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise PlotError(f"matplotlib cannot draw: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Import matplotlib with its own settings: those of a user's notebook or file may not work.

    It reads them when it is first imported. A backend that works is set again for those who plot
    in the same process.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # of folders that it cannot write to
    users = {key: os.environ.get(key) for key in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    try:
        yield
    finally:
        logger.setLevel(level)
        for key, value in users.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    if users["MPLBACKEND"]:
        import matplotlib

        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = users["MPLBACKEND"]


def _settings(look: _Look) -> dict[str, Any]:
    lines = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), look.grid)
    labels = dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), look.quiet)
    return {
        **lines,
        **labels,
        "svg.hashsalt": "kvlab",
        "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
        "figure.facecolor": look.face,
        "axes.facecolor": look.face,
        "text.color": look.ink,
        "font.size": 10.5,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": look.grid,
        "grid.linewidth": 0.7,
        "axes.labelpad": 7,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.labelcolor": look.quiet,
        "lines.linewidth": 1.5,
        "lines.markersize": 5.5,
    }


def _draw_decode(
    figure: Figure, look: _Look, rows: Sequence[dict[str, Any]], batches: Sequence[int]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        ends: dict[str, LineEnd] = {}  # by name: runs that differ in the seed share one
        contexts: set[int] = set()
        for row in rows:
            points = [point for point in row["decode"] if point["batch"] == batch]
            if not points:
                continue
            x = [point["context"] for point in points]
            y = [point["ms_per_token"] for point in points]
            colour, marker = _style(row, look.theme)
            roofline = [point["roofline_ms"] for point in points]
            panel.plot(x, roofline, ":", color=colour, linewidth=1.1)
            panel.plot(x, y, color=colour)
            for point in points:
                panel.plot(
                    point["context"],
                    point["ms_per_token"],
                    marker,
                    color=colour,
                    fillstyle="none" if point["beyond_trained"] else "full",
                )
            contexts.update(x)
            name = row.get("name", row["attention"])
            ends.setdefault(name, LineEnd(x[-1], y[-1], colour, short(name)))
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(contexts), [f"{context:,}" for context in sorted(contexts)])
        if len(contexts) > 8:
            panel.tick_params(axis="x", rotation=45)
        panel.xaxis.set_minor_locator(NullLocator())
        _log_scale(panel.yaxis)
        panel.set_xlabel("context (tokens in the cache)")
        panel.set_title(f"batch {batch}")
        label_ends(figure, panel, list(ends.values()), look.ink)
    panels[0].set_ylabel("milliseconds per token")
    points = [p for row in rows for p in row["decode"] if p["batch"] in batches]
    key: dict[str, dict[str, Any]] = {"measured": {}, "roofline": {"ls": ":", "lw": 1.1}}
    if any(point["beyond_trained"] for point in points):
        key["longer than trained"] = {"ls": "", "marker": "o", "fillstyle": "none"}
    _key(figure, [Line2D([], [], color=look.quiet, label=k, **how) for k, how in key.items()])


def _draw_curves(figure: Figure, look: _Look, lines: Sequence[SeedLine]) -> None:
    from matplotlib.ticker import EngFormatter

    axes = figure.subplots()
    ends = []
    for line in lines:
        colour, marker = style_of(line.attention, look.theme, line.layers)
        mark = marker if len(line.tokens) <= 40 else ""
        if line.seeds > 1:
            axes.fill_between(
                line.tokens, line.low, line.high, color=colour, alpha=0.2, linewidth=0
            )
        axes.plot(line.tokens, line.mean, color=colour, marker=mark, markersize=4)
        label = f"{short(line.variant)}  {line.mean[-1]:,.1f}"
        ends.append(LineEnd(line.tokens[-1], line.mean[-1], colour, label))
    _log_scale(axes.yaxis)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("validation perplexity")
    label_ends(figure, axes, ends, look.ink)


def _draw_cache(figure: Figure, look: _Look, variants: Sequence[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes = figure.subplots()
    stated = {cache_context_of(variant) for variant in variants}
    trained = {variant["trained_context"] for variant in variants} - {None}
    measured = {tokens for variant in variants for tokens, _ in variant["kv_cache_points"]}
    longest = 4 * max(*stated, *trained, max(measured) // 4)
    how: dict[str, Any] = {"color": look.quiet, "lw": 1}
    key = [Line2D([], [], label="measured", ls="", marker="o", color=look.quiet)]
    for contexts, name, style in (
        (trained, "trained context", (0, (2, 3))),
        (stated - trained, "stated context", (0, (6, 2))),
    ):
        for context in sorted(contexts):
            axes.axvline(context, ls=style, **how)
        if contexts:
            key.append(Line2D([], [], label=name, ls=style, **how))
    ends = []
    for variant in variants:
        curve = CacheCurve(**variant["kv_cache_curve"])
        colour, marker = _style(variant, look.theme)
        tokens = sorted(
            {round(longest ** (step / 64)) for step in range(65)} | {curve.plateau or 1}
        )
        line = [(t, size) for t in tokens if t <= longest and (size := curve.bytes(t)) > 0]
        axes.plot(*zip(*line, strict=True), color=colour)
        axes.plot(*zip(*variant["kv_cache_points"], strict=True), marker, color=colour)
        ends.append(LineEnd(*line[-1], colour, short(variant["name"])))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2, numticks=9))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens of the sequence")
    axes.set_ylabel("KV cache of the sequence, bytes")
    label_ends(figure, axes, ends, look.ink)
    _key(figure, key)


# Which interval, how wide and how opaque: the thin one stands on the thick one.
_INTERVALS = (("seeds", 5.0, 0.5), ("text", 1.1, 1.0))


def _draw_pareto(figure: Figure, look: _Look, points: Sequence[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes = figure.subplots()
    sizes = [cache_bytes_of(variant) for variant in points]
    left, right = min(sizes) / 1.6, max(sizes) * 2.1  # labels want the right
    axes.set_xscale("log", base=2)
    axes.set_xlim(left, right)
    axes.set_ylim(*_with_margin([y for variant in points for y in _extent(variant)]))
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    contexts = {cache_context_of(variant) for variant in points}
    tokens = f"{contexts.pop():,} tokens" if len(contexts) == 1 else "its context"
    axes.set_xlabel(f"KV cache of a sequence of {tokens}, bytes (smaller is cheaper)")
    axes.set_ylabel("perplexity (lower is better)")

    lines = [_staircase(points, right)]
    how: dict[str, Any] = {"color": look.quiet, "lw": 1}
    key = axes.plot(*zip(*lines[0], strict=True), label="lowest at this size or less", **how)
    how["ls"] = (0, (2, 3))
    for level in [variant["perplexity"] for variant in points if variant["is_baseline"]]:
        lines.append([(left, level), (right, level)])
        key += axes.plot([left, right], [level, level], label="baseline", **how)
    transforms = _side_by_side(figure, axes, sizes)
    for variant, transform in zip(points, transforms, strict=True):
        _draw_point(axes, look, variant, transform)
    for which, width, opacity in _INTERVALS:
        if any(variant[f"perplexity_ci95_{which}"] for variant in points):
            how = {"color": look.quiet, "lw": width, "alpha": opacity}
            key.append(Line2D([], [], label=f"95 %, {which}", **how))
    _key(figure, key)
    figure.draw_without_rendering()  # settles where the axes are
    anchors = [_anchor(*found) for found in zip(points, transforms, strict=True)]
    boxes = [box for line in lines for box in _boxes_of(axes, line)]
    label_points(figure, axes, anchors, boxes, look.ink)


def _staircase(points: Sequence[dict[str, Any]], right: float) -> list[tuple[float, float]]:
    """Return the corners of the Pareto front, from its smallest cache to `right`."""
    front = pareto_front(points)
    corners = [(cache_bytes_of(front[0]), front[0]["perplexity"])]
    for variant in front[1:]:
        x, y = cache_bytes_of(variant), variant["perplexity"]
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (right, corners[-1][1])]


def _draw_point(axes: Axes, look: _Look, variant: dict[str, Any], transform: Transform) -> None:
    colour, marker = _style(variant, look.theme)
    x, y = cache_bytes_of(variant), variant["perplexity"]
    how: dict[str, Any] = {"color": colour, "transform": transform}
    for which, width, opacity in _INTERVALS:
        if interval := variant[f"perplexity_ci95_{which}"]:
            axes.plot([x, x], interval, lw=width, alpha=opacity, solid_capstyle="butt", **how)
    axes.plot(x, y, marker, ms=8, mec=look.face, mew=0.8, zorder=4, **how)


def _anchor(variant: dict[str, Any], transform: Transform) -> Anchor:
    name = short(variant["name"]) + (" (baseline)" if variant["is_baseline"] else "")
    x, y, ends = cache_bytes_of(variant), variant["perplexity"], _extent(variant)
    return Anchor(x, y, min(ends), max(ends), transform, name)


def _boxes_of(axes: Axes, line: Sequence[tuple[float, float]]) -> list[Box]:
    """Return thin boxes, in pixels, around the level and plumb parts of a line."""
    boxes: list[Box] = []
    for (x, y), (next_x, next_y) in pairwise(axes.transData.transform(line)):
        low, high = min(y, next_y), max(y, next_y)
        boxes.append((x - 2, low - 2, next_x + 2, high + 2))
    return boxes


def _extent(variant: dict[str, Any]) -> list[float]:
    """Return a variant's perplexity and the ends of its intervals."""
    intervals = (variant[f"perplexity_ci95_{which}"] or [] for which in ("text", "seeds"))
    return [variant["perplexity"], *(end for interval in intervals for end in interval)]


def _with_margin(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.02 * high
    return low - margin, high + margin


def _side_by_side(figure: Figure, axes: Axes, sizes: Sequence[float]) -> list[Transform]:
    """Return a transform for each point that sets those of the same cache size apart."""
    from matplotlib.transforms import ScaledTranslation

    transforms: list[Transform] = []
    for index, size in enumerate(sizes):
        before, alike = sizes[:index].count(size), sizes.count(size)
        inches = (before - (alike - 1) / 2) * 10 / 72
        shift = ScaledTranslation(inches, 0, figure.dpi_scale_trans)
        transforms.append(axes.transData + shift)
    return transforms


def _key(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Explain the kinds of lines below the axes, where no point can be."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=len(handles))


def _log_scale(axis: Axis) -> None:
    """Make a y axis logarithmic, with plain numbers at round places."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    is_wide = high / low >= 5
    locator = LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(6, steps=[1, 2, 5, 10])
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
