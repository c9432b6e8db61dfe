"""A comparison as Markdown, and the files of its report."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comparing.across_tokenizers import ACROSS_NOTE, ACROSS_TITLE, across_tokenizers
from comparing.labels import label, shown
from comparing.plain import plain
from comparing.variants import Group
from files.atomic import write_text
from files.disk import write_failure
from files.staging import staging_folder
from guards.printable import as_code, printable
from measuring.errors import EvaluationError
from reporting.errors import PlotError
from reporting.headline import headline
from reporting.html_report import FILES_NOTE, write_html
from reporting.paper import latex_tables, results_csv
from reporting.plots import plot_all
from reporting.tables import (
    CURVE_NOTE,
    DECODE_NOTE,
    INFLUENCE_NOTE,
    PAIR_NOTE,
    across_table,
    budget_table,
    cache_table,
    decode_sections,
    influence_table,
    note,
    pair_table,
    protocol_line,
    run_table,
    table,
    task_sections,
)


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
    folder: Path,
    groups: Sequence[Group],
    facts: Mapping[str, str],
    say: Callable[[str], None],
) -> Iterator[Path]:
    """Write a report beside where it belongs, to be moved: half of one is never seen there."""
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
    variants = [result for group in groups for result in group.results]
    _write_json(folder / "results.json", [run.row for run in runs])
    _write_json(folder / "variants.json", variants)
    scored = {
        run.name: {"nll": run.windows.window_nll, "tokens": run.windows.window_tokens}
        for run in runs
        if run.windows
    }
    if scored:
        _write_json(folder / "windows.json", scored, indent=None)
        documents = {
            run.name: {"nll": run.windows.document_nll, "tokens": run.windows.document_tokens}
            for run in runs
            if run.windows
        }
        _write_json(folder / "documents.json", documents, indent=None)
    if pairs := [pair for group in groups for pair in group.pairs]:
        _write_json(folder / "pairs.json", pairs)
    across = across_tokenizers(groups)
    if across:
        _write_json(folder / "across_tokenizers.json", across)
    curves = [_curves(group) for group in groups]
    plots: list[list[str]] = []
    for number, (group, some) in enumerate(zip(groups, curves, strict=True), start=1):
        try:
            drawn = plot_all(folder, group.results, some, f"-{number}" if number > 1 else "")
        except PlotError as error:  # no reason to lose the numbers
            drawn = []
            facts = {**facts, "Plots left out": str(error)}
            say(f"plots left out: {error}")
        plots.append(drawn)
    write_text(folder / "results.csv", results_csv(groups))
    write_text(folder / "table.tex", latex_tables(groups))
    write_text(folder / "report.md", printable(_markdown(title, groups, facts, plots, across)))
    write_html(
        folder / "report.html",
        title=title,
        headline=" ".join(_headlines(groups)),
        groups=[_as_section(group) for group in groups],
        across=across,
        curves={name: curve for some in curves for name, curve in some.items()},
        facts=facts,
    )


def _headlines(groups: Sequence[Group]) -> list[str]:
    """Return the headline of each group, with the text that it is about where there are several."""
    found = []
    for group in groups:
        card = group.protocol
        about = f"{plain(card['corpus'])}, {plain(card['split'])} split: "
        if sentences := headline(group.results, group.unranked):
            found.append((about if len(groups) > 1 else "") + sentences)
    return found


def _curves(group: Group) -> dict[str, dict[str, Any]]:
    """Return by run the validations during its training, and what it is a run of."""
    return {
        run.name: {
            **{"variant": variant.label, "attention": variant.attention},
            **{"layers": variant.result["layers"], **run.curve},
        }
        for variant in group.variants
        for run in variant.by_seed().values()
    }


def _as_section(group: Group) -> dict[str, Any]:
    has_quality = group.results[0]["perplexity"] is not None
    return {
        "protocol_line": protocol_line(group.runs[0].row) if has_quality else "",
        "protocol": group.protocol,
        "variants": group.results,
        "held_equal": group.held_equal,
        "differs": group.differs,
        "pairs": group.pairs,
    }


def _write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


_ALT = {
    "pareto": "Perplexity with its intervals against the bytes of a sequence's KV cache",
    "cache": "Bytes of a sequence's KV cache against its tokens",
    "curves": "Validation perplexity against training tokens",
    "decode": "Milliseconds per token against context",
}


def _markdown(
    title: str,
    groups: Sequence[Group],
    facts: Mapping[str, str],
    plots: Sequence[Sequence[str]],
    across: Sequence[Mapping[str, Any]],
) -> str:
    parts = [f"# {title}"]
    for group, some in zip(groups, plots, strict=True):
        parts += _markdown_group(group, some)
    for found in across:
        heading = f"## {ACROSS_TITLE}: {plain(found['corpus'])}, {plain(found['split'])} split"
        parts += [heading, across_table(found["variants"], "github"), ACROSS_NOTE]
    parts += ["## About", "\n".join(f"- {name}: {as_code(value)}" for name, value in facts.items())]
    parts += [FILES_NOTE]
    return "\n\n".join(parts) + "\n"


def _markdown_group(group: Group, plots: Sequence[str]) -> list[str]:
    variants = group.results
    has_quality = variants[0]["perplexity"] is not None
    parts = []
    if has_quality:
        parts += [headline(variants, group.unranked), f"{protocol_line(group.runs[0].row)}."]
    parts += [table(variants, "github", with_costs=True), note(variants)]
    parts += [" ".join(group.how_sure)] if group.how_sure else []
    if group.held_equal:
        parts += [f"Held equal: {', '.join(group.held_equal)}."]
    if group.differs:
        parts += [
            "Not equal, apart from the attention:",
            "\n".join(f"- {d}" for d in group.differs),
        ]
    if len(group.pairs) > 1:
        parts += ["## Every pair", pair_table(group.pairs, "github"), PAIR_NOTE]
    if influence := influence_table(variants, "github"):
        parts += ["## Most influential documents", influence, INFLUENCE_NOTE]
    parts += [f"![{_ALT[re.split('[-.]', name)[0]]}]({name})" for name in plots]
    if tasks := task_sections(variants, group.protocol, "github"):
        parts += ["## Tasks", *tasks]
    if sections := decode_sections(variants, "github"):
        parts += ["## Decoding", *sections, DECODE_NOTE]
    if cache := cache_table(variants, "github"):
        parts += ["## Cache", cache, CURVE_NOTE]
    parts += ["## Budget", budget_table(variants, "github")]
    if has_quality:
        parts += ["## Every run", run_table([run.row for run in group.runs], "github")]
    if sampled := [variant for variant in variants if variant["sample"]]:
        parts += ["## Samples"]
        parts += [f"{v['name']} (seed {v['seeds'][0]}):\n\n{_fenced(v['sample'])}" for v in sampled]
    card = "\n".join(f"- {label(k)}: {as_code(shown(v))}" for k, v in group.protocol.items())
    return [*parts, "## Protocol card", card]


def _fenced(text: str) -> str:
    """Quote text that may hold fences itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.rstrip()}\n{fence}"
