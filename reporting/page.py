"""A report as one web page: self-contained, without scripts, readable from a file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from comparing.labels import NONE, typeset
from files.atomic import write_text
from guards.printable import printable
from reporting.model import Section, Theme


def write_html(
    path: Path,
    *,
    title: str,
    headline: str,
    sections: Sequence[Section],
    pictures: Mapping[str, Mapping[Theme, bytes]],
) -> None:
    """Write a report that needs nothing but its own file.

    Args:
        path: Of the HTML file.
        title: The report's name.
        headline: What was found, in a sentence or two.
        sections: In order.
        pictures: By name of a figure and theme, its SVG; a figure without is left out.

    Raises:
        RunError: If the file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names, samples and cards are a run's, and a run is anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    page = environment.get_template("report.html.jinja").render(
        title=title,
        headline=headline,
        sections=sections,
        pictures={
            name: {theme: _as_uri(svg) for theme, svg in themes.items()}
            for name, themes in pictures.items()
        },
        nothing=NONE,
    )
    write_text(path, printable(page))


def _as_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
