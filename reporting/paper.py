"""A comparison for a paper: a LaTeX table, and numbers for whatever draws and computes."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparing.for_reports import run_percent
from comparing.plain import plain
from comparing.variants import Group
from guards.printable import printable
from measuring.kv_cache import cache_context_of, known_bytes_of
from reporting.tables import comparison

CSV_COLUMNS = {
    "table": "number of the table in the report: one for each protocol card",
    "run": "the run's name",
    "variant": "what it is a run of; runs of a variant differ in the seed alone",
    "attention": "`attention=`, or the class of an external model",
    "positions": "how the model encodes positions",
    "seed": "of the training; empty for an external model",
    "parameters": "all of them, embeddings included",
    "tokens_trained": "tokens that the training read",
    "corpus": "that was scored",
    "split": "that was scored",
    "context": "tokens a window",
    "stride": "tokens newly scored a window",
    "dtype": "of the weights",
    "decode_path": "whole windows, or token by token through a cache",
    "tokens_scored": "each once",
    "nll": "nats per token",
    "perplexity": "exp(nll)",
    "perplexity_low": "lower end of its 95 % interval over the text",
    "perplexity_high": "upper end",
    "word_perplexity": "per word of the original text",
    "bits_per_byte": "of the original text",
    "baseline_run": "what it is compared with: the baseline's run of its seed",
    "delta_percent": "perplexity above that of the baseline's run, in percent",
    "delta_percent_low": "lower end of its 95 % interval over the text",
    "delta_percent_high": "upper end",
    "verdict": "of the variant, over all its seeds",
    "kv_context": "tokens of the sequence whose cache is stated",
    "kv_bytes_at_context": "closed form over all layers; as measured where there is none",
    "kv_bytes_read_per_step": "of it, by a decoding step; empty where there is no formula",
    "kv_bytes_per_token": "what a token adds once windows are full; empty without a formula",
    "kv_bytes_per_token_measured": "live cache after a real decode / tokens of its context",
    "kv_ratio_to_baseline": "cache of the variant / cache of its baseline",
    "kv_ratio_to_mha": "cache / cache of multi-head attention of this size",
    "train_tokens_per_second": "while it trained",
    "train_peak_memory_bytes": "while it trained",
    "train_wall_seconds": "of the training",
}
"""Columns of results.csv and what they hold; those of decoding and tasks follow."""
_PAPER = {
    "name": "variant",
    "seeds": "seeds",
    "num_parameters": "params",
    "perplexity": "perplexity",
    "perplexity_ci95": "95~\\%",
    "of": "of",
    "delta_percent": "diff. (\\%)",
    "delta_percent_ci95": "95~\\%",
    "verdict": "verdict",
    "kv_cache_bytes_at_context": "KV bytes",
    "cache_ratio_to_baseline": "ratio",
}
"""Columns of the comparison that the LaTeX table has, with their headings there."""
_NOTHING = "--"
# pdfTeX knows the letters of Latin alphabets; another letter would stop it.
_NOT_LATIN = re.compile("[^\n\x20-\x7e\xa0-\u017f]")


def results_csv(groups: Sequence[Group]) -> str:
    """Return a row a run under `CSV_COLUMNS`; empty cells where there is no value.

    After these columns, `decode_ms_bB_cC` has the milliseconds of a decoding step at batch B and
    context C, and `TASK.METRIC` a task's result.
    """
    rows = [
        _csv_row(number, run.row)
        for number, group in enumerate(groups, start=1)
        for run in group.runs
    ]
    names = list(dict.fromkeys([*CSV_COLUMNS, *(name for row in rows for name in row)]))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _csv_row(table: int, row: Mapping[str, Any]) -> dict[str, Any]:
    card = row["protocol"]
    # Keys that results.json has under the same name are taken as they are.
    found = {name: row.get(name, card.get(name)) for name in CSV_COLUMNS}
    found |= {
        "table": table,
        "run": row["run_name"],
        "parameters": row["num_parameters"],
        "kv_context": cache_context_of(row),
        "kv_bytes_at_context": known_bytes_of(row),
        "kv_bytes_read_per_step": row.get("kv_cache_bytes_read_per_step"),
        "kv_bytes_per_token": row["kv_cache_bytes_per_token"],
        "kv_bytes_per_token_measured": row["kv_cache_bytes_measured"],
        "kv_ratio_to_baseline": row["cache_ratio_to_baseline"],
        "kv_ratio_to_mha": row["cache_ratio_to_mha"],
    }
    found["perplexity_low"], found["perplexity_high"] = row["perplexity_ci95"] or (None, None)
    found["delta_percent"], interval = run_percent(row)
    found["delta_percent_low"], found["delta_percent_high"] = interval or (None, None)
    for point in row.get("decode") or []:
        found[f"decode_ms_b{point['batch']}_c{point['context']}"] = point["ms_per_token"]
    return found | dict(_task_cells(row))


def _task_cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for task, results in (row.get("tasks") or {}).items():
        for key, value in results.items():
            if key not in ("n", "version", "num_fewshot"):
                yield f"{task}.{key}", value


def _csv_cell(value: Any) -> Any:
    """Show text so that a spreadsheet takes none for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def latex_tables(groups: Sequence[Group]) -> str:
    """Return a LaTeX table for each protocol, to be read into a document with booktabs."""
    parts = ["% \\usepackage{booktabs} in the preamble, then \\input{table.tex}"]
    for number, group in enumerate(groups, start=1):
        label = "tab:kvlab" if len(groups) == 1 else f"tab:kvlab-{number}"
        parts += [
            "\\begin{table*}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{2.5pt}",
            _latex_table(group.results),
            f"\\caption{{{_escaped(_caption(group))}}}\n\\label{{{label}}}\n\\end{{table*}}",
        ]
    return _NOT_LATIN.sub("?", "\n".join(parts)) + "\n"


_ESCAPES = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "~": "\\textasciitilde{}",
    "^": "\\^{}",
    "\\": "\\textbackslash{}",
    "<": "\\ensuremath{<}",
    ">": "\\ensuremath{>}",
}


def _escaped(text: str) -> str:
    """Set text: signs that are commands in LaTeX, true minus signs, a percent sign's space."""
    latex = "".join(_ESCAPES.get(letter, letter) for letter in " ".join(text.split()))
    latex = re.sub(r"(?<![\w-])-(?=\d)", "$-$", latex)
    return re.sub(r"(?<=\d) (?=\\%)", "~", latex)


def _caption(group: Group) -> str:
    card = group.protocol
    what = (
        f"{plain(card['corpus'])}, {plain(card['split'])} split, context {card['context']:,}, "
        f"stride {card['stride']:,}."
    )
    if group.results[0]["perplexity"] is None:
        return what
    return (
        f"{what} Intervals are 95 %: text, over the documents of the scored text; "
        "seeds, Student's t over training runs. Differences from the baseline are paired. "
        f"KV bytes: of the cache of a sequence of {_stated(group)} tokens; ratio: to the "
        "baseline's."
    )


def _stated(group: Group) -> str:
    contexts = sorted({cache_context_of(variant) for variant in group.results})
    return " or ".join(f"{context:,}" for context in contexts)


def _latex_table(variants: Sequence[Mapping[str, Any]]) -> str:
    """Draw the comparison, a line for each kind of interval; columns of nothing are left out."""
    columns = {column.key: column for column in comparison(variants).columns()}
    lines: list[dict[str, str]] = []
    for variant in variants:
        cells = {key: column.cell(variant) for key, column in columns.items()}
        first = {key: cells.get(key) or _NOTHING for key in _PAPER}
        first["delta_percent"] = first["delta_percent"].removesuffix(" %")
        if note := cells.get("verdict_note"):
            first["verdict"] = f"{first['verdict']} ({note})"
        lines.append(first | {"of": ""} | _with_intervals(cells, "text"))
        if cells.get("perplexity_ci95_seeds"):
            lines.append(_with_intervals(cells, "seeds"))
    empty = ("", _NOTHING)
    keys = [key for key in _PAPER if any(line.get(key, "") not in empty for line in lines)]
    align = "".join("l" if key in ("name", "of", "verdict") else "r" for key in keys)
    body = [" & ".join(_escaped(line.get(key, "")) for key in keys) for line in lines]
    # A row that begins like an option of the command before it.
    body = [re.sub(r"^(?=[\[(*])", "{}", row) for row in body]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{align}}}\n\\toprule",
            " & ".join(_PAPER[key] for key in keys) + " \\\\\n\\midrule",
            *(f"{row} \\\\" for row in body),
            "\\bottomrule\n\\end{tabular}",
        ]
    )


def _with_intervals(cells: Mapping[str, str | None], which: str) -> dict[str, str]:
    """Return the cells of one kind of interval, in brackets."""
    keys = ("perplexity_ci95", "delta_percent_ci95")
    shown = {
        key: f"[{text.replace(' to ', ', ')}]"
        for key in keys
        if (text := cells.get(f"{key}_{which}"))
    }
    return shown | ({"of": which} if shown else {})
