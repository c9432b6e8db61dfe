"""Plots of a report. An attention has the same colour and marker in all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which colour-blind readers tell apart; others follow in order.
_STYLES = {
    "mha": ("#000000", "o"),
    "mqa": ("#E69F00", "s"),
    "gqa": ("#009E73", "^"),
    "mla": ("#0072B2", "D"),
    "mla_no_rope": ("#CC79A7", "v"),
}
_FURTHER = (("#D55E00", "P"), ("#56B4E9", "X"), ("#F0E442", "*"))


def style_of(attention: str) -> tuple[str, str]:
    """Return an attention's colour and marker."""
    if attention in _STYLES:
        return _STYLES[attention]
    return _FURTHER[sum(attention.encode()) % len(_FURTHER)]


def plot_decode(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw milliseconds per token against the context, a panel for each batch.

    Lines are measured, dotted ones the roofline; hollow markers are contexts longer than those of
    the training.

    Args:
        rows: With `decode`, as `comparison.add_decode_speed` leaves them.
        path: Of the PNG file.
    """
    # Without pyplot: no window system, and no state that outlives the figure.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    batches = sorted({point["batch"] for row in rows for point in row["decode"]})
    if not batches:
        return
    figure = Figure(figsize=(5.5 * len(batches), 4.5), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        drawn: dict[str, Any] = {}
        for row in rows:
            points = [point for point in row["decode"] if point["batch"] == batch]
            contexts = [point["context"] for point in points]
            colour, marker = style_of(row["attention"])
            roofline = [point["roofline_ms"] for point in points]
            panel.plot(contexts, roofline, ":", color=colour, linewidth=1)
            [line] = panel.plot(contexts, [point["ms_per_token"] for point in points], color=colour)
            for point in points:
                panel.plot(
                    point["context"],
                    point["ms_per_token"],
                    marker,
                    color=colour,
                    fillstyle="none" if point["beyond_trained"] else "full",
                )
            drawn.setdefault(row["attention"], line)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        ticks = sorted({c for row in rows for p in row["decode"] for c in [p["context"]]})
        panel.set_xticks(ticks)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.tick_params(axis="x", rotation=45)
        panel.grid(visible=True, which="both", linewidth=0.4, alpha=0.5)
        panel.set_xlabel("context (tokens in the cache)")
        panel.set_title(f"batch {batch}")
        if panel is panels[0]:
            panel.set_ylabel("milliseconds per token")
            handles = [
                Line2D([], [], color=style_of(name)[0], marker=style_of(name)[1], label=name)
                for name in drawn
            ]
            handles.append(Line2D([], [], color="grey", linestyle=":", label="roofline"))
            panel.legend(handles=handles, fontsize="small")
    figure.savefig(path, dpi=150)
