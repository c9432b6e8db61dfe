"""The files of a report: pages, plots, tables for papers, and everything as JSON."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comparing.across_tokenizers import across_tokenizers
from comparing.variants import Group
from files.atomic import write_text
from files.disk import write_failure
from files.staging import staging_folder
from guards.printable import printable
from measuring.errors import EvaluationError
from reporting.contents import about, sections, text_of
from reporting.errors import PlotError
from reporting.headline import headline
from reporting.markdown import markdown
from reporting.model import Figure, Section, Theme
from reporting.page import write_html
from reporting.paper import latex_tables, results_csv
from reporting.plots import draw


def require_writable(parent: Path) -> None:
    """Refuse a folder that no report can be put into, before there is anything to put there.

    Raises:
        EvaluationError: If it is not there and cannot be made, or may not be written to.
    """
    existing = next(path for path in (parent, *parent.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise EvaluationError(
            f"cannot write to {existing}; set reports_dir to a folder that you may write to"
        )


def _nobody(line: str) -> None:
    del line


def new_report(
    parent: Path,
    name: str,
    groups: Sequence[Group],
    facts: Mapping[str, str],
    say: Callable[[str], None] = _nobody,
) -> Path:
    """Write a report to a folder of its own; one that is there is kept, and the new one numbered.

    Args:
        parent: The folder of all reports.
        name: The report's, if there is none of that name yet.
        groups: What was compared.
        facts: What the report says of itself: command, date, hardware, versions, commit.
        say: Receives a line where plots are left out.

    Raises:
        EvaluationError: If there are too many of that name.
        RunError: If it cannot be written; nothing is left of it then.
    """
    for number in range(1, 100_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if os.path.lexists(folder):
            continue
        with _staged(folder, groups, facts, say) as written:
            try:
                written.rename(folder)
            except OSError:
                if not os.path.lexists(folder):
                    raise
                continue  # another process was faster
        return folder
    raise EvaluationError(f"{parent} holds too many reports called {name}; set report_name")


def update_report(folder: Path, groups: Sequence[Group], facts: Mapping[str, str]) -> None:
    """Write a report again, with results that have come since; each file at once.

    Args:
        folder: Where `new_report` wrote it.
        groups: As there.
        facts: As there.

    Raises:
        RunError: If it cannot be written; the one that is there stays.
    """
    with _staged(folder, groups, facts, _nobody) as written:
        for path in sorted(path for path in written.rglob("*") if path.is_file()):
            place = folder / path.relative_to(written)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)


@contextmanager
def _staged(
    folder: Path, groups: Sequence[Group], facts: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Path]:
    """Write a report next to its place, to be moved there: half of one is never seen."""
    with staging_folder(folder) as temporary:
        try:
            _write_report(temporary, folder.name, groups, facts, say)
            yield temporary
        except OSError as error:
            raise write_failure(folder, error) from error


def _write_report(
    folder: Path,
    title: str,
    groups: Sequence[Group],
    facts: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Write results.json, variants.json, plots, report.md and report.html.

    For papers results.csv, table.tex and figures/. And windows.json, documents.json and pairs.json,
    where perplexity was measured; across_tokenizers.json, where one text was read in several
    tokenizers' tokens.
    """
    runs = [run for group in groups for run in group.runs]
    across = across_tokenizers(groups)
    _write_json(folder / "results.json", [run.row for run in runs])
    _write_json(folder / "variants.json", [one for group in groups for one in group.results])
    if scored := {run.name: run.windows for run in runs if run.windows}:
        windows = {n: {"nll": w.window_nll, "tokens": w.window_tokens} for n, w in scored.items()}
        _write_json(folder / "windows.json", windows, indent=None)
        documents = {
            name: {"nll": found.document_nll, "tokens": found.document_tokens}
            for name, found in scored.items()
        }
        _write_json(folder / "documents.json", documents, indent=None)
    if pairs := [pair for group in groups for pair in group.pairs]:
        _write_json(folder / "pairs.json", pairs)
    if across:
        _write_json(folder / "across_tokenizers.json", across)
    found = sections(groups, _curves(groups), across)
    pictures, problem = draw_all(folder, found)
    if problem:  # no reason to lose the numbers
        facts = {**facts, "Plots left out": problem}
        say(f"plots left out: {problem}")
    found.append(about(facts))
    said = _headlines(groups)
    write_text(folder / "results.csv", results_csv(groups))
    write_text(folder / "table.tex", latex_tables(groups))
    write_text(folder / "report.md", printable(markdown(title, said, found, pictures)))
    write_html(
        folder / "report.html", title=title, headline=said, sections=found, pictures=pictures
    )


def draw_all(
    folder: Path, sections: Sequence[Section]
) -> tuple[dict[str, Mapping[Theme, bytes]], str]:
    """Draw every figure as NAME.png, and as a PDF in figures/.

    Returns:
        By name of the figures that there was something to draw of, their SVG in each theme; and
        why others could not be drawn, empty if all could.
    """
    found: dict[str, Mapping[Theme, bytes]] = {}
    problem = ""
    for figure in (part for one in sections for part in one.parts if isinstance(part, Figure)):
        name = figure.name
        files = folder / f"{name}.png", folder / "figures" / f"{name}.pdf"
        try:
            found[name] = draw(figure.plot, *files)
        except PlotError as error:
            problem = str(error)
    return found, problem


def _headlines(groups: Sequence[Group]) -> str:
    """Return the headline of each group, with the text that it is about where there are several."""
    found = []
    for group in groups:
        if sentences := headline(group.results, group.unranked):
            found.append((f"{text_of(group.protocol)}: " if len(groups) > 1 else "") + sentences)
    return " ".join(found)


def _curves(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Return by run the validations during its training, and what it is a run of."""
    return {
        run.name: {
            **{"variant": variant.label, "attention": variant.attention},
            **{"layers": variant.result["layers"], **run.curve},
        }
        for group in groups
        for variant in group.variants
        for run in variant.by_seed().values()
    }


def _write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")
