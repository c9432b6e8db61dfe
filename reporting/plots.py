"""Plots of a report. An attention has the same colour and marker in all of them.

Figures come as PNG, PDF and SVG, light or dark; the same numbers give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from comparing.for_reports import seed_lines, timed_points
from measuring.kv_cache import cache_context_of
from modeling.accounting import CacheCurve
from reporting.axes import bytes_ticks, legend, log_scale, powers_of_two, short
from reporting.looks import LOOKS, Look, explained, own_settings, settings, style_of, style_of_row
from reporting.model import Plot, Row, Target, Theme
from reporting.quality_plot import draw_difference, draw_pareto


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
    figure_of = draw_difference if of_baseline else draw_pareto
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
        axes.plot(*points, marker, color=colour, label=short(variant["name"]))
    for contexts, name, dashes in (
        (trained, "trained context", (0, (2, 3))),
        (stated - trained, "stated context", (0, (6, 2))),
    ):
        for number, context in enumerate(sorted(contexts)):
            how: dict[str, Any] = {"color": look.quiet, "lw": 1, "ls": dashes}
            axes.axvline(context, label=f"_{name}" if number else name, **how)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    powers_of_two(axes.xaxis)
    bytes_ticks(axes.yaxis)
    axes.set_xlabel("tokens of the sequence")
    axes.set_ylabel("KV cache of the sequence")
    legend(figure)


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
            label=f"{short(line.variant)}  {line.mean[-1]:,.1f}",
        )
    log_scale(axes.yaxis)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("validation perplexity")
    legend(figure)


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
            panel.plot(at, measured, marker=marker, color=colour, label=short(variant["name"]))
            beyond = [(p["context"], p["ms_per_token"]) for p in points if p["beyond_trained"]]
            for x, y in beyond:
                panel.plot(x, y, marker, color=colour, mfc=look.face)
        panel.set_xscale("log", base=2)
        panel.set_xticks(contexts, [f"{context:,}" for context in contexts])
        if len(contexts) > 6:
            panel.tick_params(axis="x", rotation=45)
        panel.xaxis.set_minor_locator(NullLocator())
        log_scale(panel.yaxis)
        panel.set_xlabel("context (tokens in the cache)")
        panel.set_title(f"batch {batch}")
    panels[0].set_ylabel("milliseconds per token\n(dotted: roofline)")
    legend(figure)
