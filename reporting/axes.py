"""Parts that plots share: ticks, scales and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_LONGEST = 34  # characters of a name


def short(name: str) -> str:
    """Return a name that a legend has room for."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def legend(figure: Figure, *, is_below: bool = False) -> None:
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


def bytes_ticks(axis: Axis) -> None:
    """Put ticks at powers of two, in units that are such."""
    powers_of_two(axis)
    axis.set_major_formatter(lambda size, _: in_binary_units(size))


def in_binary_units(size: float) -> str:
    """Write bytes in units of powers of 1024."""
    power = max(0, min(3, (round(size).bit_length() - 1) // 10))
    return f"{size / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def powers_of_two(axis: Axis) -> None:
    """Put ticks at powers of two."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(base=2, numticks=9))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_locator(NullLocator())


def log_scale(axis: Axis) -> None:
    """Make a y axis logarithmic, with plain numbers at round places."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    is_wide = high / low >= 5
    locator = LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(6, steps=[1, 2, 5, 10])
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
