"""How plots look: colours and markers of attentions, themes, and settings that are kvlab's own."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from reporting.errors import PlotError
from reporting.model import Theme

# Okabe and Ito's palette, made for colour-blind readers; others follow in order.
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


class Look(NamedTuple):
    """Colours of a theme."""

    theme: Theme
    ink: str
    quiet: str
    grid: str
    face: str


LOOKS: dict[Theme, Look] = {
    "light": Look("light", ink="#1c2024", quiet="#5b636d", grid="#dfe3e8", face="#ffffff"),
    "dark": Look("dark", ink="#e9ebee", quiet="#a3abb5", grid="#343a42", face="#171a1f"),
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
        return (LOOKS["dark"].ink if is_lost else colour), marker
    marker, shift = _ARRANGED.get(str(layers), _ARRANGED_OTHERWISE)
    if theme == "dark" and colour == "#000000":
        colour, shift = LOOKS["dark"].ink, -abs(shift)
    return _shifted(colour, shift), marker


def _shifted(colour: str, shift: float) -> str:
    """Move a colour a share of the way to white, or with a negative share to black."""
    end = 255 if shift > 0 else 0
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(shift) * (end - part)):02X}" for part in parts)


def style_of_row(row: Mapping[str, Any], theme: Theme) -> tuple[str, str]:
    """Return the colour and marker of a variant."""
    return style_of(row["attention"], theme, row.get("layers"))


@contextlib.contextmanager
def explained() -> Iterator[None]:
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
def own_settings() -> Iterator[None]:
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


def settings(look: Look) -> dict[str, Any]:
    """Return matplotlib's settings in a theme."""
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
