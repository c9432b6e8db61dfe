"""What a report says, in order: sections for Markdown and for the page alike."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from comparing.across_tokenizers import ACROSS_NOTE, ACROSS_TITLE
from comparing.for_reports import pareto_front, seed_lines, timed_points
from comparing.labels import label, shown
from comparing.plain import plain
from comparing.variants import Group
from measuring.kv_cache import cache_bytes_of, has_known_cache
from reporting.cost_tables import budget_table, decode_tables, growth_table
from reporting.formats import count, perplexity, signed_percent
from reporting.headline import pairing_notes, too_little_text
from reporting.model import Bullets, Facts, Figure, Part, Row, Samples, Section, Table
from reporting.plots import plot_cache, plot_curves, plot_decode, plot_quality, quality_name
from reporting.tables import (
    across_table,
    comparison,
    influence_table,
    pair_table,
    run_table,
    task_tables,
    units_table,
)

TASK_NOTE = (
    "Mean over the seeds, ± lm_eval's standard error, which is over a task's documents and does "
    "not shrink with more seeds; some metrics have none."
)
DECODE_NOTE = (
    "Median over rounds in which every variant has a turn. Roofline: the weights, and what a step "
    "reads of the cache, at the measured memory bandwidth; what fits into the processor's caches "
    "can be faster. Extra: the most a step takes beyond weights and cache. Faster than the "
    "baseline: from that context on, at all longer ones that were timed. *: longer than the "
    "context of some run's training."
)
PAIR_NOTE = (
    "Intervals over seeds hold for all pairs together, so they are wider than those to the "
    "baseline."
)
INFLUENCE_NOTE = (
    "The documents without which the difference changes most. Where a few make it, it is about "
    "them."
)
GROWTH_NOTE = (
    "A sequence of T tokens takes fixed + bytes/token x T until windows are full (up to), then "
    "bytes/token beyond for each further token; fitted to live caches after a real decode of the "
    "contexts named last, and compared with the closed form."
)
FILES_NOTE = (
    "For papers, the report's folder holds figures/ (any plots, as PDFs), table.tex (for LaTeX, "
    "with booktabs) and results.csv (a row a run)."
)


def protocol_line(row: Row) -> str:
    """Say in one line how a row's numbers came about."""
    card = row["protocol"]
    # Cards from before the option do not have it.
    documents = ", attention within documents" if card.get("intra_document_mask") else ""
    cached = ""
    if card.get("decode_path", "").startswith("token by token"):
        cached = f", {card['decode_path']}"
    return (
        f"{text_of(card)}: {row['tokens_scored']:,} tokens "
        f"scored, each once, context {card['context']}, stride {card['stride']}, {card['dtype']}"
        f"{cached}{documents}; {card['words']:,} words, {card['utf8_bytes']:,} bytes; tokenizer "
        f"{card['tokenizer_sha256'][:12]}, data {card['data_fingerprint'][:12]}"
    )


def text_of(card: Row) -> str:
    """Name the text of a protocol card."""
    return f"{plain(card['corpus'])}, {plain(card['split'])} split"


def sections(
    groups: Sequence[Group], curves: Mapping[str, Row], across: Sequence[Row]
) -> list[Section]:
    """Describe a report, but for what it says of itself.

    Args:
        groups: What was compared.
        curves: By run name: `variant`, `attention`, `tokens` and `perplexity` during training.
        across: What `across_tokenizers.across_tokenizers` found.
    """
    found: list[Section] = []
    for number, group in enumerate(groups, start=1):
        several = len(groups) > 1
        if several:
            title = f"Protocol {number} of {len(groups)}"
            found.append(Section(f"protocol-{number}", title, []))
        for section in _of_group(group, curves, f"-{number}" if number > 1 else ""):
            key = f"{section.key}-{number}" if several else section.key
            found.append(Section(key, section.title, section.parts, level=3 if several else 2))
    for number, one in enumerate(across, start=1):
        key = f"across-{number}" if len(across) > 1 else "across"
        caption = f"{text_of(one)}, {one['utf8_bytes']:,} bytes"
        table = across_table(one["variants"], caption)
        found.append(Section(key, ACROSS_TITLE, [f"{caption}.", table, ACROSS_NOTE]))
    return found


def about(facts: Mapping[str, str]) -> Section:
    """Describe what to know in order to repeat a report."""
    return Section("repeat", "Versions and command", [Facts(facts, is_code=True), FILES_NOTE])


def note(variants: Sequence[Row]) -> str:
    """Explain a comparison: its columns, and how seeds were paired where that is not simply so."""
    parts = [comparison(variants).meanings(), too_little_text(variants), *pairing_notes(variants)]
    return " ".join(filter(None, parts))


def _of_group(group: Group, curves: Mapping[str, Row], suffix: str) -> Iterator[Section]:
    """Yield the sections of one protocol; `suffix` parts its figures' names from other groups'."""
    variants, rows = group.results, [run.row for run in group.runs]
    has_quality = variants[0]["perplexity"] is not None
    results: list[Part] = [f"{protocol_line(rows[0])}."] if has_quality else []
    results += [comparison(variants), note(variants), *group.how_sure]
    if has_quality:
        results += [units_table(variants), run_table(rows)]
    if len(group.pairs) > 1:
        results += [pair_table(group.pairs), PAIR_NOTE]
    influence = influence_table(variants)
    results += [influence, INFLUENCE_NOTE] if influence.rows else []
    yield Section("results", "Results", results)
    yield from _figures(variants, curves, suffix)
    if tasks := task_tables(variants):
        said = f"{TASK_NOTE} {plain(group.protocol['tasks'], 2000)}."
        yield Section("tasks", "Tasks", [*_captioned(tasks), said])
    if tables := decode_tables(variants):
        plot = partial(plot_decode, variants)
        figure = Figure(f"decode{suffix}", plot, _decode_words(variants))
        yield Section("decoding", "Decoding", [figure, *tables, DECODE_NOTE])
    said = "Where parameters are, and what a token costs, by closed forms that the tests measure."
    yield Section("budget", "Budget", [said, budget_table(variants)])
    lists = ("Held equal", group.held_equal), ("Not equal, apart from the attention", group.differs)
    yield Section(
        "card",
        "Protocol",
        [
            "Numbers share a table only where all of this is the same.",
            Facts({label(key): shown(value) for key, value in group.protocol.items()}),
            *(Bullets(title, items) for title, items in lists if items),
        ],
    )
    if samples := {v["name"]: v["sample"] for v in variants if v["sample"]}:
        said = "What the runs wrote at the end of their training: it shows the kind of text only."
        yield Section("samples", "Samples", [said, Samples(samples)])


def _captioned(tables: Sequence[Table]) -> Iterator[Part]:
    for one in tables:
        yield from (f"{one.caption}:", one)


def _figures(variants: Sequence[Row], curves: Mapping[str, Row], suffix: str) -> Iterator[Section]:
    """Yield the sections that are a picture, where there is something to see."""
    shown_ones = [v for v in variants if v["perplexity"] is not None and has_known_cache(v)]
    if len(shown_ones) > 1:
        name, plot = quality_name(shown_ones), partial(plot_quality, shown_ones)
        caption = [
            "Down is better, left is cheaper; the cache axis is logarithmic. Variants with the "
            "same cache size stand side by side, and hollow markers are not comparable."
        ]
        figure = Figure(f"{name}{suffix}", plot, _quality_words(shown_ones), caption)
        yield Section(name, "Quality against cache", [figure])
    if known := [variant for variant in variants if variant.get("kv_cache_curve")]:
        caption = [
            "Markers are live caches after a real decode, lines the curve fitted to them. Vertical "
            "lines: the trained context, and the one at which caches are stated."
        ]
        plot = partial(plot_cache, known)
        figure = Figure(f"cache{suffix}", plot, _cache_words(known), caption)
        parts: list[Part] = [figure, growth_table(known), GROWTH_NOTE]
        yield Section("cache", "Cache against context", parts)
    runs = {run for variant in variants for run in variant["runs"]}
    mine = {run: curve for run, curve in curves.items() if run in runs}
    if lines := seed_lines(mine):
        caption = [
            "On the part of the validation text that is scored while training, so the last value "
            "is not the table's. "
            + (
                "A line is the mean over seeds, its band the lowest to the highest."
                if any(line.seeds > 1 for line in lines)
                else "One run for each line, so there is no band of seeds."
            )
        ]
        figure = Figure(f"curves{suffix}", partial(plot_curves, mine), _curve_words(lines), caption)
        yield Section("training", "Training", [figure])


def _quality_words(variants: Sequence[Row]) -> str:
    points = [
        f"{plain(v['name'])} {perplexity(v['perplexity'])}"
        + ("" if v["delta_percent"] is None else f" ({signed_percent(v['delta_percent'])})")
        + f" at {count(cache_bytes_of(v))} bytes"
        for v in variants
    ]
    front = ", ".join(plain(variant["name"]) for variant in pareto_front(variants))
    return (
        f"Perplexity against the bytes of a sequence's KV cache: {'; '.join(points)}. Lowest at "
        f"their size or less: {front}."
    )


def _cache_words(variants: Sequence[Row]) -> str:
    ends = [
        f"{plain(v['name'])} {count(num_bytes)} bytes at {count(tokens)} tokens"
        for v in variants
        for tokens, num_bytes in v["kv_cache_points"][-1:]
    ]
    return f"Bytes of a sequence's KV cache against its tokens: {'; '.join(ends)}."


def _curve_words(lines: Sequence[Any]) -> str:
    ends = [
        f"{plain(line.variant)} {perplexity(line.mean[-1])} after {count(line.tokens[-1])} tokens"
        for line in lines
    ]
    return f"Validation perplexity against training tokens: {'; '.join(ends)}."


def _decode_words(variants: Sequence[Row]) -> str:
    batches = sorted({batch for batch, _ in timed_points(variants)})
    parts = []
    for batch in batches:
        lines = []
        for variant in variants:
            points = [p for p in variant.get("decode") or [] if p["batch"] == batch]
            ends = [f"{p['ms_per_token']:,.2f} at {p['context']:,}" for p in points]
            if ends:
                lines.append(f"{plain(variant['name'])} {' and '.join([ends[0], ends[-1]])}")
        parts.append(f"batch {batch}: {'; '.join(lines)}")
    return f"Milliseconds per token against context, {'. '.join(parts)}."
