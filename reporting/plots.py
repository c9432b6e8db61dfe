"""Plots of a report. An attention has the same colour and marker in all of them.

Figures come as PNG, PDF and SVG, light or dark; the same numbers give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

from comparing.for_reports import pareto_front, seed_lines, sureness, timed_points
from comparing.labels import typeset
from comparing.statistics import NOT_COMPARABLE
from measuring.kv_cache import cache_bytes_of, cache_context_of
from modeling.accounting import CacheCurve
from reporting.looks import LOOKS, Look, explained, own_settings, settings, style_of, style_of_row
from reporting.model import Plot, Row, Target, Theme

_LONGEST = 34  # characters of a name


def draw(plot: Plot, *paths: Path) -> dict[Theme, bytes]:
    """Draw a plot to files, light, and as SVG in each theme.

    Args:
        plot: One of this module's, with its numbers.
        paths: PNG, PDF or SVG files.

    Returns:
        The SVG by theme.

    Raises:
        PlotError: If it cannot be drawn.
        OSError: If a file cannot be written.
    """
    found: dict[Theme, bytes] = {}
    for theme in get_args(Theme):
        stream = BytesIO()
        plot([*paths, stream] if theme == "light" else [stream], theme)
        found[theme] = stream.getvalue()
    return found


def plot_quality(
    variants: Sequence[Row], targets: Sequence[Target], theme: Theme = "light"
) -> None:
    """Draw perplexity against the bytes of a sequence's cache at the stated context.

    In percent of the baseline's, with the interval of the difference over seeds, else over the
    text. Where there is no baseline the perplexity itself, with the lowest at each cache size.

    Args:
        variants: Of one protocol, with a perplexity and a cache that is known.
        targets: Where to.
        theme: Of its colours.
    """
    of_baseline = quality_name(variants) == "difference"
    figure_of = _draw_difference if of_baseline else _draw_pareto
    _write(lambda figure, look: figure_of(figure, look, variants), targets, theme)


def quality_name(variants: Sequence[Row]) -> str:
    """Name the file of `plot_quality`: difference, or pareto where there is no baseline."""
    return "difference" if any(variant["is_baseline"] for variant in variants) else "pareto"


def plot_cache(variants: Sequence[Row], targets: Sequence[Target], theme: Theme = "light") -> None:
    """Draw the bytes of a sequence's cache against its tokens, a line for each variant.

    Markers are what was measured, lines the curve that was fitted to it; vertical lines are the
    trained context and, where it is another, the one at which caches are stated.

    Args:
        variants: With `kv_cache_curve`.
        targets: Where to.
        theme: Of its colours.
    """
    _write(lambda figure, look: _draw_cache(figure, look, variants), targets, theme)


def plot_curves(
    curves: Mapping[str, Row], targets: Sequence[Target], theme: Theme = "light"
) -> None:
    """Draw validation perplexity against the tokens trained on, a line for each variant.

    The line is the mean over seeds (of the logarithms, as the axis shows them) where all of them
    were validated, the band their lowest to highest.

    Args:
        curves: As for `seed_lines`.
        targets: Where to.
        theme: Of its colours.
    """
    _write(lambda figure, look: _draw_curves(figure, look, curves), targets, theme)


def plot_decode(variants: Sequence[Row], targets: Sequence[Target], theme: Theme = "light") -> None:
    """Draw milliseconds per token against the context, a panel for each batch.

    Lines are measured, dotted ones the roofline; hollow markers are contexts longer than those of
    the training.

    Args:
        variants: With `decode` as `add_decode_speed` leaves it; those without are left out.
        targets: Where to.
        theme: Of its colours.
    """
    batches = sorted({batch for batch, _ in timed_points(variants)})
    size = (1.6 + 4.8 * len(batches), 4.2)
    _write(lambda figure, look: _draw_decode(figure, look, variants, batches), targets, theme, size)


def _write(
    drawing: Callable[[Figure, Look], None],
    targets: Sequence[Target],
    theme: Theme,
    size: tuple[float, float] = (7.2, 4.0),
) -> None:
    """Draw a figure and write it.

    Raises:
        OSError: If the file cannot be written.
        PlotError: If it cannot be drawn.
    """
    look = LOOKS[theme]
    with explained():
        # Without pyplot: no window system, and no state that outlives the figure.
        with own_settings():
            from matplotlib import style
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

        # From the defaults, whatever the user's matplotlibrc says: a figure changes for a reason
        # only.
        with style.context(["default", settings(look)]):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            drawing(figure, look)
            drawn = [_rendered(figure, target) for target in targets]
    for target, content in zip(targets, drawn, strict=True):
        if isinstance(target, Path):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        else:
            target.write(content)


def _rendered(figure: Figure, target: Target) -> bytes:
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


def _draw_difference(figure: Figure, look: Look, variants: Sequence[Row]) -> None:
    axes = _cache_axes(figure, variants)
    bases = [variant for variant in variants if variant["is_baseline"]]
    base = _short(bases[0]["name"]) if len(bases) == 1 else "its baseline"
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
        _short(v["name"])
        + (" (baseline)" if v["is_baseline"] else typeset(f"  {v['delta_percent']:+.1f} %"))
        for v in compared
    ]
    _points(figure, look, axes, compared, points, names)


def _draw_pareto(figure: Figure, look: Look, variants: Sequence[Row]) -> None:
    axes = _cache_axes(figure, variants)
    axes.set_title("Perplexity, 95 % intervals over seeds, else the text; lower is better")
    axes.set_ylabel("perplexity")
    front = pareto_front(variants)
    sizes, levels = [cache_bytes_of(v) for v in front], [v["perplexity"] for v in front]
    right = axes.get_xlim()[1]
    axes.step([*sizes, right], [*levels, levels[-1]], where="post", color=look.quiet, lw=1)
    intervals = [v["perplexity_ci95_seeds"] or v["perplexity_ci95_text"] for v in variants]
    points = [(v["perplexity"], interval) for v, interval in zip(variants, intervals, strict=True)]
    _points(figure, look, axes, variants, points, [_short(v["name"]) for v in variants])


def _cache_axes(figure: Figure, variants: Sequence[Row]) -> Axes:
    """Return axes whose x is the bytes of a sequence's cache."""
    axes = figure.subplots()
    sizes = [cache_bytes_of(variant) for variant in variants]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    _bytes_ticks(axes.xaxis)
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
    labels = [f"{_in_binary_units(x)}\n{word}" for x, word in zip(at, words, strict=True)]
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
        _legend(figure, is_below=True)


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


def _draw_cache(figure: Figure, look: Look, variants: Sequence[Row]) -> None:
    axes = figure.subplots()
    stated = {cache_context_of(variant) for variant in variants}
    trained = {variant["trained_context"] for variant in variants} - {None}
    measured = {tokens for variant in variants for tokens, _ in variant["kv_cache_points"]}
    longest = 4 * max(*stated, *trained, max(measured) // 4)
    for variant in variants:
        curve = CacheCurve(**variant["kv_cache_curve"])
        colour, marker = style_of_row(variant, look.theme)
        tokens = sorted(
            {round(longest ** (step / 64)) for step in range(65)} | {curve.plateau or 1}
        )
        line = [(t, size) for t in tokens if t <= longest and (size := curve.bytes(t)) > 0]
        axes.plot(*zip(*line, strict=True), color=colour)
        points = zip(*variant["kv_cache_points"], strict=True)
        axes.plot(*points, marker, color=colour, label=_short(variant["name"]))
    for contexts, name, dashes in (
        (trained, "trained context", (0, (2, 3))),
        (stated - trained, "stated context", (0, (6, 2))),
    ):
        for number, context in enumerate(sorted(contexts)):
            how: dict[str, Any] = {"color": look.quiet, "lw": 1, "ls": dashes}
            axes.axvline(context, label=f"_{name}" if number else name, **how)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _powers_of_two(axes.xaxis)
    _bytes_ticks(axes.yaxis)
    axes.set_xlabel("tokens of the sequence")
    axes.set_ylabel("KV cache of the sequence")
    _legend(figure)


def _draw_curves(figure: Figure, look: Look, curves: Mapping[str, Row]) -> None:
    from matplotlib.ticker import EngFormatter

    axes = figure.subplots()
    for line in sorted(seed_lines(curves), key=lambda line: -line.mean[-1]):
        colour, marker = style_of(line.attention, look.theme, line.layers)
        if line.seeds > 1:
            axes.fill_between(line.tokens, line.low, line.high, color=colour, alpha=0.2, lw=0)
        axes.plot(
            line.tokens,
            line.mean,
            color=colour,
            marker=marker if len(line.tokens) <= 40 else "",
            markersize=4,
            label=f"{_short(line.variant)}  {line.mean[-1]:,.1f}",
        )
    _log_scale(axes.yaxis)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("validation perplexity")
    _legend(figure)


def _draw_decode(
    figure: Figure, look: Look, variants: Sequence[Row], batches: Sequence[int]
) -> None:
    from matplotlib.ticker import NullLocator

    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        contexts = sorted({context for one, context in timed_points(variants) if one == batch})
        for variant in variants:
            points = [point for point in variant.get("decode") or [] if point["batch"] == batch]
            colour, marker = style_of_row(variant, look.theme)
            at = [point["context"] for point in points]
            roofline = [point["roofline_ms"] for point in points]
            panel.plot(at, roofline, ":", color=colour, lw=1.1)
            measured = [point["ms_per_token"] for point in points]
            panel.plot(at, measured, marker=marker, color=colour, label=_short(variant["name"]))
            beyond = [(p["context"], p["ms_per_token"]) for p in points if p["beyond_trained"]]
            for x, y in beyond:
                panel.plot(x, y, marker, color=colour, mfc=look.face)
        panel.set_xscale("log", base=2)
        panel.set_xticks(contexts, [f"{context:,}" for context in contexts])
        if len(contexts) > 6:
            panel.tick_params(axis="x", rotation=45)
        panel.xaxis.set_minor_locator(NullLocator())
        _log_scale(panel.yaxis)
        panel.set_xlabel("context (tokens in the cache)")
        panel.set_title(f"batch {batch}")
    panels[0].set_ylabel("milliseconds per token\n(dotted: roofline)")
    _legend(figure)


def _short(name: str) -> str:
    """Return a name that a legend has room for."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _legend(figure: Figure, *, is_below: bool = False) -> None:
    """Name what is drawn, each once, outside the axes."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    loc: Any = "outside lower center" if is_below else "outside right upper"
    ncols = 3 if is_below else 1
    legend = figure.legend(handles.values(), handles.keys(), loc=loc, ncols=ncols)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold dollars


def _bytes_ticks(axis: Axis) -> None:
    """Put ticks at powers of two, in units that are such."""
    _powers_of_two(axis)
    axis.set_major_formatter(lambda size, _: _in_binary_units(size))


def _in_binary_units(size: float) -> str:
    power = max(0, min(3, (round(size).bit_length() - 1) // 10))
    return f"{size / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _powers_of_two(axis: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(base=2, numticks=9))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_locator(NullLocator())


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
