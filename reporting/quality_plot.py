"""The main plot of a report: perplexity against the cache, as a difference where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

from comparing.for_reports import pareto_front, sureness
from comparing.labels import typeset
from comparing.statistics import NOT_COMPARABLE
from measuring.kv_cache import cache_bytes_of, cache_context_of
from reporting.axes import bytes_ticks, in_binary_units, legend, short
from reporting.looks import Look, style_of_row
from reporting.model import Row


def draw_difference(figure: Figure, look: Look, variants: Sequence[Row]) -> None:
    """Draw differences to the baseline in percent, with their intervals, against the cache."""
    axes = _cache_axes(figure, variants)
    bases = [variant for variant in variants if variant["is_baseline"]]
    base = short(bases[0]["name"]) if len(bases) == 1 else "its baseline"
    compared = [v for v in variants if v["is_baseline"] or v["delta_percent"] is not None]
    over = " or ".join(sorted({sureness(variant).over for variant in compared} - {""}))
    intervals = f", 95 % intervals over {over}" if over else ""
    axes.set_title(f"Difference to {base}{intervals}; lower is better", parse_math=False)
    axes.set_ylabel(f"perplexity against {base}, %", parse_math=False)
    axes.axhline(0, color=look.ink, lw=1, ls=(0, (4, 2)))
    axes.yaxis.set_major_formatter(lambda change, _: typeset(f"{change:+g}") if change else "0")
    if len(bases) == 1:
        _relative_ticks(axes, cache_bytes_of(bases[0]), base)
    points = [(v["delta_percent"] or 0.0, sureness(v).interval) for v in compared]
    names = [
        short(v["name"])
        + (" (baseline)" if v["is_baseline"] else typeset(f"  {v['delta_percent']:+.1f} %"))
        for v in compared
    ]
    _points(figure, look, axes, compared, points, names)


def draw_pareto(figure: Figure, look: Look, variants: Sequence[Row]) -> None:
    """Draw perplexities against the cache, and the lowest at each size or less."""
    axes = _cache_axes(figure, variants)
    axes.set_title("Perplexity, 95 % intervals over seeds, else the text; lower is better")
    axes.set_ylabel("perplexity")
    front = pareto_front(variants)
    sizes, levels = [cache_bytes_of(v) for v in front], [v["perplexity"] for v in front]
    right = axes.get_xlim()[1]
    axes.step([*sizes, right], [*levels, levels[-1]], where="post", color=look.quiet, lw=1)
    intervals = [v["perplexity_ci95_seeds"] or v["perplexity_ci95_text"] for v in variants]
    points = [(v["perplexity"], interval) for v, interval in zip(variants, intervals, strict=True)]
    _points(figure, look, axes, variants, points, [short(v["name"]) for v in variants])


def _cache_axes(figure: Figure, variants: Sequence[Row]) -> Axes:
    """Return axes whose x is the bytes of a sequence's cache."""
    axes = figure.subplots()
    sizes = [cache_bytes_of(variant) for variant in variants]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    bytes_ticks(axes.xaxis)
    contexts = {cache_context_of(variant) for variant in variants}
    tokens = f"{contexts.pop():,} tokens" if len(contexts) == 1 else "its context"
    axes.set_xlabel(f"KV cache of a sequence of {tokens}")
    return axes


def _relative_ticks(axes: Axes, size: float, base: str) -> None:
    """Put ticks where a cache is a power of two smaller or larger than the baseline's."""
    low, high = axes.get_xlim()
    powers = [power for power in range(-20, 21) if low <= size * 2.0**power <= high]
    words = [f"{2**-p}x smaller" if p < 0 else f"{2**p}x larger" if p else base for p in powers]
    at = [size * 2.0**power for power in powers]
    labels = [f"{in_binary_units(x)}\n{word}" for x, word in zip(at, words, strict=True)]
    axes.set_xticks(at, labels, parse_math=False)


def _points(
    figure: Figure,
    look: Look,
    axes: Axes,
    variants: Sequence[Row],
    points: Sequence[tuple[float, Sequence[float] | None]],
    names: Sequence[str],
) -> None:
    """Draw variants with their intervals and names; a hollow marker is not comparable."""
    transforms = _side_by_side(figure, axes, variants)
    anchors = []
    for variant, (y, interval), transform, name in zip(
        variants, points, transforms, names, strict=True
    ):
        colour, marker = style_of_row(variant, look.theme)
        x = cache_bytes_of(variant)
        if interval:
            ends: dict[str, Any] = {"lw": 2, "marker": "_", "ms": 9, "mew": 2, "color": colour}
            axes.plot([x, x], interval, transform=transform, **ends)
        face = look.face if variant["verdict"] == NOT_COMPARABLE else colour
        how: dict[str, Any] = {"mfc": face, "mec": colour, "label": name, "color": colour}
        axes.plot(x, y, marker, ms=8, ls="", transform=transform, zorder=4, **how)
        anchors.append((transform, x, y, interval or (y, y), name))
    ends_of = [end for y, interval in points for end in (y, *(interval or ()))]
    margin = 0.12 * (max(ends_of) - min(ends_of)) or 0.02 * abs(max(ends_of)) or 1.0
    axes.set_ylim(min(ends_of) - margin, max(ends_of) + margin)
    figure.draw_without_rendering()  # settles where the axes are
    if not _named(axes, anchors):
        figure.set_figheight(figure.get_figheight() + 0.08 * len(names))
        legend(figure, is_below=True)


def _named(axes: Axes, anchors: Sequence[tuple[Transform, float, float, Any, str]]) -> bool:
    """Write each name next to its point; False, with none written, where they have no room."""
    inside = axes.get_window_extent()
    points = (line for line in axes.lines if line.get_transform() != axes.transData)
    taken = [line.get_window_extent() for line in points]
    for transform, x, y, (low, high), name in anchors:
        for at, offset, ha, va in (
            (y, (8, 0), "left", "center"),
            (y, (-8, 0), "right", "center"),
            (high, (0, 5), "center", "bottom"),
            (low, (0, -5), "center", "top"),
        ):
            text = axes.annotate(
                name,
                (x, at),
                xycoords=transform,
                xytext=offset,
                textcoords="offset points",
                ha=ha,
                va=va,
                parse_math=False,  # a name may hold dollars
            )
            box = text.get_window_extent()
            fits = all(inside.contains(*corner) for corner in (box.min, box.max))
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
        else:
            for written in [*axes.texts]:
                written.remove()
            return False
    return True


def _side_by_side(figure: Figure, axes: Axes, variants: Sequence[Row]) -> list[Transform]:
    """Return a transform for each point that sets those of the same cache size apart."""
    from matplotlib.transforms import ScaledTranslation

    transforms: list[Transform] = []
    sizes = [cache_bytes_of(variant) for variant in variants]
    for index, size in enumerate(sizes):
        before, alike = sizes[:index].count(size), sizes.count(size)
        inches = (before - (alike - 1) / 2) * 11 / 72
        shift = ScaledTranslation(inches, 0, figure.dpi_scale_trans)
        transforms.append(axes.transData + shift)
    return transforms
