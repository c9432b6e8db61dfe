"""A comparison as one web page: self-contained, without scripts, readable from a file."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, get_args

from comparing.across_tokenizers import ACROSS_NOTE, ACROSS_TITLE
from comparing.labels import NONE, label, shown, typeset
from files.atomic import write_text
from guards.printable import printable
from measuring.kv_cache import bytes_read_of, cache_bytes_of, has_known_cache, measured_bytes_of
from reporting.errors import PlotError
from reporting.headline import pairing_notes, too_little_text
from reporting.plots import (
    Theme,
    pareto_front,
    plot_cache,
    plot_curves,
    plot_decode,
    plot_pareto,
    seed_lines,
)
from reporting.tables import CURVE_NOTE, cache_heading
from reporting.task_cells import TASK_NOTE, described, metrics_of, tasks_of, value_and_error

FILES_NOTE = (
    "For papers, the report's folder holds figures/ (any plots, as PDFs), table.tex (for LaTeX, "
    "with booktabs) and results.csv (a row a run)."
)
Variant = dict[str, Any]
Plot = Callable[[IO[bytes], Theme], bool]


@dataclass(frozen=True)
class Cell:
    """What a table shows of a variant: a value, and lines below it (label, text)."""

    text: str
    notes: Sequence[tuple[str, str]] = ()
    badge: str = ""
    intervals: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Column:
    """A heading, what it belongs to, and a cell for each variant."""

    heading: str
    part: str
    cells: list[Cell]
    alone: str = ""
    """The heading where it stands without its part."""


@dataclass(frozen=True)
class Table:
    """Columns, and the variant that each row is of."""

    caption: str
    rows: list[Cell]
    columns: list[Column]

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Neighbouring columns that belong together: of what, and how many."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.part:
                found[-1] = (column.part, found[-1][1] + 1)
            else:
                found.append((column.part, 1))
        return found


@dataclass(frozen=True)
class Picture:
    """A plot by theme, as data URIs, and what it shows in words."""

    by_theme: dict[Theme, str]
    words: str


def write_html(
    path: Path,
    *,
    title: str,
    headline: str,
    groups: Sequence[Mapping[str, Any]],
    curves: Mapping[str, dict[str, Any]],
    facts: Mapping[str, str],
    across: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a report that needs nothing but its own file.

    Args:
        path: Of the HTML file.
        title: The report's name.
        headline: What was found, in a sentence or two.
        groups: One for each protocol: `protocol_line`, `protocol`, `variants`, `held_equal`,
            `differs` and `pairs`, as they stand in variants.json and pairs.json.
        curves: By run name: `variant`, `attention`, `tokens` and `perplexity` during training.
        facts: What to know in order to repeat it: command, date, hardware, versions, commit.
        across: What `across_tokenizers.across_tokenizers` found.

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
    environment.filters |= {"label": label, "typeset": typeset}
    page = environment.get_template("report.html.jinja").render(
        title=title,
        headline=headline,
        groups=[_group(group, curves) for group in groups],
        facts=facts,
        across=[_across(found) for found in across],
        across_title=ACROSS_TITLE,
        across_note=ACROSS_NOTE,
        files_note=FILES_NOTE,
    )
    write_text(path, printable(page))


def _group(group: Mapping[str, Any], curves: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the template shows of one protocol."""
    variants: list[Variant] = group["variants"]
    names = [Cell(variant["name"]) for variant in variants]
    runs = {run for variant in variants for run in variant["runs"]}
    mine = {run: curve for run, curve in curves.items() if run in runs}
    batches = sorted({point["batch"] for v in variants for point in _decode(v)})
    return {
        "protocol_line": group["protocol_line"],
        "protocol": {label(key): shown(value) for key, value in group["protocol"].items()},
        "held_equal": group["held_equal"],
        "differs": group["differs"],
        "baseline": _baseline(variants) if any(v["baseline"] for v in variants) else None,
        "has_perplexity": any(v["perplexity"] is not None for v in variants),
        "has_seeds": any(v["perplexity_ci95_seeds"] for v in variants),
        "pairing_notes": pairing_notes(variants),
        "too_little_text": too_little_text(variants),
        "pairs": _pairs(group["pairs"]),
        "influence": _influence(variants),
        "has_bands": any(line.seeds > 1 for line in seed_lines(mine)),
        "results": _table("Results", [_described(v) for v in variants], _result_columns(variants)),
        "units": _table("Perplexity by seed and in other units", names, _unit_columns(variants)),
        "budget": _table("Parameters, cache and compute", names, _budget_columns(variants)),
        "shares": _shares(variants),
        "pareto": _picture(partial(plot_pareto, variants), _pareto_words(variants)),
        "cache": _picture(partial(plot_cache, variants), _cache_words(variants)),
        "growth": _growth(variants),
        "reads_more": any(bytes_read_of(v) is not None for v in variants),
        "curve_note": CURVE_NOTE,
        "curves": _picture(partial(plot_curves, mine), _curve_words(mine)),
        "tasks": [_task_table(variants, task) for task in tasks_of(variants)],
        "task_note": f"{TASK_NOTE} {group['protocol'].get('tasks')}.",
        "decode": [_decode_part(variants, batch) for batch in batches],
        "decodes_beyond": any(p["beyond_trained"] for v in variants for p in _decode(v)),
        "samples": {v["name"]: v["sample"] for v in variants if v["sample"]},
    }


# Tables


def _table(caption: str, rows: list[Cell], columns: Sequence[Column]) -> Table:
    """Leave out the columns that are empty for every variant."""
    filled = [
        c
        for c in columns
        if any(cell.text != NONE or cell.notes or cell.intervals for cell in c.cells)
    ]
    return Table(caption, rows, filled)


def _described(variant: Variant) -> Cell:
    """Name a variant, its positions and its seeds."""
    seeds = variant["seeds"]
    which = "seed" if len(seeds) == 1 else "seeds"
    trained = (which, _listed(seeds)) if seeds else ("", "external")
    return Cell(variant["name"], [("", variant["positions"]), trained])


def _numbers(
    variants: Sequence[Variant],
    heading: str,
    part: str,
    key: str,
    show: Callable[[Any], str],
    alone: str = "",
) -> Column:
    """Make a column of one key; a value that is None is shown as such."""
    values = [variant[key] for variant in variants]
    return Column(heading, part, [Cell(NONE if v is None else show(v)) for v in values], alone)


def _result_columns(variants: Sequence[Variant]) -> list[Column]:
    numbers = partial(_numbers, variants)
    verdicts = [Cell(*_verdict(v)) for v in variants]
    against = _baseline(variants)
    return [
        numbers("parameters", "Model", "num_parameters", _count),
        Column("perplexity", "Quality", [_perplexity(v) for v in variants]),
        Column(f"against {against}", "Quality", [_difference(v, against) for v in variants]),
        Column("verdict", "Quality", verdicts),
        _cache_column(variants),
        Column("tokens/s", "Training", [_training(v) for v in variants], "training tokens/s"),
        *_decode_columns(variants),
    ]


def _perplexity(variant: Variant) -> Cell:
    if variant["perplexity"] is None:
        return Cell(NONE)
    return Cell(_ppl(variant["perplexity"]), intervals=_intervals(variant, "perplexity", _ppl))


def _baseline(variants: Sequence[Variant]) -> str:
    """Name what variants are compared with; in general where that is not one."""
    names = {variant["baseline"] for variant in variants} - {None}
    return names.pop() if len(names) == 1 else "its baseline"


def _difference(variant: Variant, against: str) -> Cell:
    if variant["delta_percent"] is None:
        return Cell(NONE)
    notes = [("to", variant["baseline"])] if variant["baseline"] != against else []
    intervals = _intervals(variant, "delta_percent", _signed)
    return Cell(f"{_signed(variant['delta_percent'])} %", notes, intervals=intervals)


def _intervals(
    variant: Mapping[str, Any], key: str, show: Callable[[float], str]
) -> list[tuple[str, str]]:
    found = ((which, variant[f"{key}_ci95_{which}"]) for which in ("text", "seeds"))
    return [(which, f"{show(pair[0])} to {show(pair[1])}") for which, pair in found if pair]


def _verdict(variant: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], str]:
    verdict, note = variant["verdict"], variant["verdict_note"]
    if verdict is None:
        return NONE, [], ""
    return verdict, [("", note)] if note else [], verdict


def _cache_column(variants: Sequence[Variant]) -> Column:
    alone = cache_heading(variants)
    return Column(alone.removeprefix("KV "), "KV cache", [_cache(v) for v in variants], alone)


def _cache(variant: Variant) -> Cell:
    if not has_known_cache(variant):
        return Cell(NONE, [("", "not measured")])
    ratio, measured = variant["cache_ratio_to_baseline"], measured_bytes_of(variant)
    notes = (
        [] if ratio is None else [("", f"{_ratio(ratio)} of {variant['baseline'] or 'baseline'}")]
    )
    if variant["kv_cache_bytes_per_token"] is None:
        notes.append(("", "as measured"))
    elif measured is not None and round(measured) != variant["kv_cache_bytes_at_context"]:
        notes.append(("measured", _count(measured)))
    if (read := bytes_read_of(variant)) is not None:
        notes.append(("read a step", _count(read)))
    return Cell(_count(cache_bytes_of(variant)), notes)


def _training(variant: Variant) -> Cell:
    speed, memory = variant["train_tokens_per_second"], variant["train_peak_memory_bytes"]
    seconds = variant["train_wall_seconds"]
    notes = [] if seconds is None else [("in", _duration(seconds))]
    if memory is not None:
        notes.append(("peak", _memory(memory)))
    return Cell(NONE if speed is None else _count(speed), notes)


def _decode(variant: Variant) -> list[dict[str, Any]]:
    """Return what was timed; the key may be absent."""
    return variant.get("decode") or []


def _decode_columns(variants: Sequence[Variant]) -> list[Column]:
    """Show the shortest and the longest context at the smallest and the largest batch."""
    points = [point for variant in variants for point in _decode(variant)]
    columns = []
    for batch in _ends(point["batch"] for point in points):
        for context in _ends(p["context"] for p in points if p["batch"] == batch):
            part = f"ms/token, batch {batch}"
            cells = [_ms(variant, batch, context) for variant in variants]
            columns.append(Column(f"at {context:,}", part, cells, f"{part}, at {context:,}"))
    return columns


def _ends(values: Any) -> list[int]:
    found = sorted(set(values))
    return found[:1] + found[1:][-1:]


def _ms(variant: Variant, batch: int, context: int, roofline: bool = False) -> Cell:
    for point in _decode(variant):
        if (point["batch"], point["context"]) == (batch, context):
            notes = [("roofline", f"{point['roofline_ms']:,.2f}")] if roofline else []
            return Cell(f"{point['ms_per_token']:,.2f}", notes)
    return Cell(NONE)


def _decode_part(variants: Sequence[Variant], batch: int) -> dict[str, Any]:
    """Return the picture and the table of one batch."""
    points = [p for variant in variants for p in _decode(variant) if p["batch"] == batch]
    contexts = sorted({point["context"] for point in points})
    beyond = {point["context"] for point in points if point["beyond_trained"]}
    columns = [
        Column(
            f"{context:,}{'*' if context in beyond else ''}",
            "ms per token at a context",
            [_ms(variant, batch, context, roofline=True) for variant in variants],
            f"ms at {context:,}{'*' if context in beyond else ''}",
        )
        for context in contexts
    ]
    last = [
        next((p for p in _decode(v) if (p["batch"], p["context"]) == (batch, contexts[-1])), None)
        for v in variants
    ]
    for heading, key in (("cache", "cache_bytes"), ("extra", "peak_extra_bytes")):
        cells = [Cell(NONE if point is None else _memory(point[key])) for point in last]
        part = f"memory at {contexts[-1]:,}"
        columns.append(Column(heading, part, cells, f"{heading} {part}"))
    even = [variant.get("break_even", {}).get(str(batch)) for variant in variants]
    cells = [Cell(NONE if context is None else _count(context)) for context in even]
    columns.append(
        Column("from context", "faster than the baseline", cells, "faster than the baseline from")
    )
    return {
        "picture": _picture(
            partial(plot_decode, variants, batch=batch), _decode_words(variants, batch)
        ),
        "table": _table(
            f"Decoding at batch {batch}, in numbers", [Cell(v["name"]) for v in variants], columns
        ),
    }


def _task_table(variants: Sequence[Variant], task: str) -> Table:
    """Return a task's metrics with their standard errors."""
    columns = []
    for metric in metrics_of(variants, task):
        pairs = [value_and_error(variant, task, metric) for variant in variants]
        cells = [
            Cell(value or NONE, [("", f"±\N{NO-BREAK SPACE}{error}")] if error else [])
            for value, error in pairs
        ]
        columns.append(Column(label(metric), described(variants, task), cells, label(metric)))
    return _table(task, [Cell(v["name"]) for v in variants], columns)


def _unit_columns(variants: Sequence[Variant]) -> list[Column]:
    numbers = partial(_numbers, variants)
    by_seed = []
    for seed in sorted({seed for variant in variants for seed in variant["seeds"]}):
        found = [
            dict(zip(v["seeds"], v["perplexity_by_seed"] or [], strict=False)) for v in variants
        ]
        cells = [Cell(_ppl(values[seed]) if seed in values else NONE) for values in found]
        by_seed.append(Column(f"seed {seed}", "Perplexity", cells))
    return [
        *by_seed,
        numbers("standard deviation", "Perplexity", "perplexity_sd", _ppl),
        numbers("nats/token", "Other units", "nll", lambda value: f"{value:.4f}"),
        numbers("bits/byte", "Other units", "bits_per_byte", lambda value: f"{value:.4f}"),
        numbers("perplexity per word", "Other units", "word_perplexity", _ppl),
    ]


def _across(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of one text that several tokenizers read."""
    rows = found["variants"]
    bits = [
        Cell(
            f"{row['bits_per_byte']:.4f}",
            intervals=[("text", f"{pair[0]:.4f} to {pair[1]:.4f}")] if pair else [],
        )
        for row, pair in ((row, row["bits_per_byte_ci95_text"]) for row in rows)
    ]
    numbers = partial(_numbers, rows)
    columns = [
        Column("bits/byte", "Quality", bits),
        Column("against the best", "Quality", [_against_best(row) for row in rows]),
        numbers("tokenizer", "Reading", "tokenizer_sha256", lambda value: value[:12]),
        numbers("tokens", "Reading", "tokens", _count),
        numbers("context", "Reading", "context", _count),
        numbers("stride", "Reading", "stride", _count),
        numbers("parameters", "Model", "num_parameters", _count),
        _across_cache(rows),
    ]
    caption = f"{found['corpus']}, {found['split']} split, {_count(found['utf8_bytes'])} bytes"
    return {
        "caption": caption,
        "table": Table(caption, [Cell(row["name"]) for row in rows], columns),
    }


def _across_cache(rows: Sequence[Mapping[str, Any]]) -> Column:
    heading = cache_heading(rows)
    cells = [
        Cell(NONE)
        if row["kv_cache_bytes_at_context"] is None
        else Cell(
            _count(row["kv_cache_bytes_at_context"]),
            [("at", f"{row['kv_cache_context']:,}")] if "its" in heading else [],
        )
        for row in rows
    ]
    return Column(heading, "Model", cells)


def _against_best(row: Mapping[str, Any]) -> Cell:
    """Show the difference of bits per byte to the lowest, with its interval."""
    if row["delta_bits_per_byte"] is None:
        return Cell(NONE)
    pair = row["delta_bits_per_byte_ci95_text"]
    show = partial(_signed, digits=4)
    notes = [("text", f"{show(pair[0])} to {show(pair[1])}")] if pair else []
    return Cell(show(row["delta_bits_per_byte"]), notes)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the difference of every two variants; None where there is one pair at most."""
    if len(pairs) < 2:
        return None
    differences = [
        Cell(f"{_signed(pair['delta_percent'])} %", _intervals(pair, "delta_percent", _signed))
        for pair in pairs
    ]
    columns = [
        Column("against", "Pair", [Cell(pair["against"]) for pair in pairs]),
        Column("difference", "Perplexity", differences),
        Column("verdict", "Perplexity", [Cell(*_verdict(pair)) for pair in pairs]),
    ]
    return _table("Every pair", [Cell(pair["variant"]) for pair in pairs], columns)


def _influence(variants: Sequence[Variant]) -> Table | None:
    """Return which documents carry a difference to the baseline; None where none is known."""
    found = [(variant, row) for variant in variants for row in _documents(variant)]
    if not found:
        return None
    without = [Cell(f"{_signed(row['delta_percent_without'])} %") for _, row in found]
    columns = [
        Column("document", "Text", [Cell(row["name"]) for _, row in found]),
        _numbers([row for _, row in found], "tokens", "Text", "tokens", _count),
        Column("whole", "Difference", [Cell(f"{_signed(v['delta_percent'])} %") for v, _ in found]),
        Column("without it", "Difference", without),
    ]
    return Table("Most influential documents", [Cell(v["name"]) for v, _ in found], columns)


def _documents(variant: Variant) -> list[dict[str, Any]]:
    """Return the influential documents, and a row for all of them together."""
    rows: list[dict[str, Any]] = variant.get("influential_documents") or []
    if len(rows) < 2:
        return rows
    together = {
        "name": f"these {len(rows)} together",
        "tokens": sum(row["tokens"] for row in rows),
        "delta_percent_without": variant["delta_percent_without_influential"],
    }
    return [*rows, together]


PARTS = ("embeddings", "attention", "mlp", "norms")
"""Where parameters are."""


def _budget_columns(variants: Sequence[Variant]) -> list[Column]:
    budgets = [variant["budget"] for variant in variants]
    numbers, heading = partial(_numbers, budgets), cache_heading(variants)
    return [
        *(numbers(label(part), "Parameters", part, _count) for part in (*PARTS, "total")),
        numbers(
            heading.removeprefix("KV "), "KV cache", "kv_cache_bytes_at_context", _count, heading
        ),
        numbers("of MHA's", "KV cache", "cache_ratio_to_mha", _ratio, "of MHA's cache"),
        numbers(
            "MFLOPs/token", "Training", "training_flops_per_token", lambda v: f"{v / 1e6:,.1f}"
        ),
    ]


def _growth(variants: Sequence[Variant]) -> Table | None:
    """Return how each cache grows with the tokens; None where nothing was measured."""
    known = [variant for variant in variants if variant.get("kv_cache_curve")]
    if not known:
        return None
    curves = [
        variant["kv_cache_curve"]
        if variant["kv_cache_curve"]["slope"] != variant["kv_cache_curve"]["slope_beyond"]
        else variant["kv_cache_curve"] | {"plateau": None, "slope_beyond": None}
        for variant in known
    ]
    numbers = partial(_numbers, curves)
    measured = [_listed([_count(t) for t, _ in v["kv_cache_points"]]) for v in known]
    columns = [
        numbers("fixed", "Bytes of a sequence", "fixed", _count),
        numbers("bytes/token", "Bytes of a sequence", "slope", _count),
        numbers("up to", "Bytes of a sequence", "plateau", _count),
        numbers("bytes/token beyond", "Bytes of a sequence", "slope_beyond", _count),
        _numbers(known, "read/step", "Decoding", "kv_cache_bytes_read_per_step", _count),
        Column("measured at", "Tokens", [Cell(text) for text in measured]),
    ]
    return _table("How each cache grows", [Cell(v["name"]) for v in known], columns)


def _shares(variants: Sequence[Variant]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return by variant the percentage of its parameters in each part."""
    found = []
    for variant in variants:
        budget = variant["budget"]
        if budget[PARTS[0]] is None:
            continue  # of another library
        shares = [(part, 100 * budget[part] / budget["total"]) for part in PARTS]
        found.append((variant["name"], shares))
    return found


# Pictures


def _picture(plot: Plot, words: str) -> Picture | None:
    """Draw a plot in every theme; None where it has nothing to show, or cannot be drawn."""
    by_theme: dict[Theme, str] = {}
    for theme in get_args(Theme):
        stream = BytesIO()
        try:
            is_drawn = plot(stream, theme)
        except PlotError:  # `report` says so
            is_drawn = False
        if not is_drawn:
            return None
        data = base64.b64encode(stream.getvalue()).decode()
        by_theme[theme] = f"data:image/svg+xml;base64,{data}"
    return Picture(by_theme, words)


def _pareto_words(variants: Sequence[Variant]) -> str:
    shown = [v for v in variants if v["perplexity"] is not None and has_known_cache(v)]
    points = [
        f"{v['name']} {_ppl(v['perplexity'])} at {_count(cache_bytes_of(v))} bytes" for v in shown
    ]
    if not shown:
        return ""
    front = _listed([variant["name"] for variant in pareto_front(shown)])
    return (
        f"Perplexity against {cache_heading(shown)}: {'; '.join(points)}. "
        f"Lowest at their size or less: {front}."
    )


def _cache_words(variants: Sequence[Variant]) -> str:
    ends = []
    for variant in (v for v in variants if v.get("kv_cache_points")):
        tokens, num_bytes = variant["kv_cache_points"][-1]
        ends.append(f"{variant['name']} {_count(num_bytes)} bytes at {_count(tokens)} tokens")
    return f"Bytes of a sequence's KV cache against its tokens: {'; '.join(ends)}."


def _curve_words(curves: Mapping[str, dict[str, Any]]) -> str:
    ends = [
        f"{line.variant} {_ppl(line.mean[-1])} after {_count(line.tokens[-1])} tokens"
        for line in seed_lines(curves)
    ]
    return f"Validation perplexity during training: {'; '.join(ends)}."


def _decode_words(variants: Sequence[Variant], batch: int) -> str:
    lines = []
    for variant in variants:
        points = [point for point in _decode(variant) if point["batch"] == batch]
        if points:
            first, last = points[0], points[-1]
            lines.append(
                f"{variant['name']} {first['ms_per_token']:,.2f} at {first['context']:,} and "
                f"{last['ms_per_token']:,.2f} at {last['context']:,}"
            )
    return f"Milliseconds per token against context, batch {batch}: {'; '.join(lines)}."


# Values


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ppl(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _memory(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
