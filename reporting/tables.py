"""A comparison's numbers as tables of text, and the notes below them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from comparing.plain import plain
from comparing.statistics import FEWEST_SEEDS
from files.sizes import in_units
from measuring.kv_cache import bytes_read_of, cache_context_of, known_bytes_of, measured_bytes_of
from reporting.headline import pairing_notes, too_little_text
from reporting.task_cells import TASK_NOTE, described, metrics_of, tasks_of, value_and_error

QUALITY = (
    *("variant", "positions", "seeds", "parameters", "perplexity", "95 % (text)", "95 % (seeds)"),
    *("vs baseline", "95 % (text) ", "95 % (seeds) ", "verdict", "against"),
)
"""Headings of `quality_cells`, before those of the cache."""
CACHE = ("measured", "read/step", "of baseline", "of MHA's")
"""Headings of `quality_cells` after the context at which the cache is stated."""
COSTS = ("train tokens/s", "peak MiB", "minutes")
"""Headings of `cost_cells`, before those of decoding."""
VARIANT_COLUMNS = [
    *("name", "attention", "positions", "num_parameters", "tokens_trained", "perplexity"),
    *("perplexity_sd", "word_perplexity", "bits_per_byte", "delta_percent", "verdict"),
    *("kv_cache_context", "kv_cache_bytes_at_context", "cache_ratio_to_baseline"),
    *("kv_cache_bytes_per_token", "kv_cache_bytes_measured", "kv_cache_bytes_read_per_step"),
    *("train_tokens_per_second", "train_peak_memory_bytes", "train_wall_seconds"),
]
"""Keys of a variant's result that wandb's table gets."""
RUN_COLUMNS = [
    *("run_name", "variant", "attention", "positions", "seed", "num_parameters", "tokens_trained"),
    *("perplexity", "word_perplexity", "bits_per_byte", "delta_nll", "baseline_run"),
    *("kv_cache_context", "kv_cache_bytes_at_context", "cache_ratio_to_mha"),
    *("kv_cache_bytes_per_token", "kv_cache_bytes_measured", "kv_cache_bytes_read_per_step"),
]
"""Keys of a run's row that wandb's table gets."""
_WORDS = {
    "variant",
    "positions",
    "verdict",
    "against",
    "run",
    "tokenizer",
    "document",
    "measured at",
}


def quality_cells(variant: Mapping[str, Any]) -> list[str]:
    """Format what a variant's cache costs in quality."""
    percent = variant["delta_percent"]
    note = f" ({variant['verdict_note']})" if variant["verdict_note"] else ""
    ratio = variant["cache_ratio_to_baseline"]
    return [
        variant["name"],
        variant["positions"],
        str(len(variant["seeds"]) or "-"),
        f"{variant['num_parameters']:,}",
        _number(variant["perplexity"]),
        _interval(variant["perplexity_ci95_text"], "{:,.2f}"),
        _interval(variant["perplexity_ci95_seeds"], "{:,.2f}"),
        "-" if percent is None else f"{percent:+,.2f} %",
        _interval(variant["delta_percent_ci95_text"], "{:+,.2f}"),
        _interval(variant["delta_percent_ci95_seeds"], "{:+,.2f}"),
        f"{variant['verdict'] or '-'}{note}",
        "-" if variant["is_baseline"] else variant["baseline"] or "-",
        _bytes(known_bytes_of(variant)),
        _bytes(measured_bytes_of(variant)),
        _bytes(bytes_read_of(variant)),
        _ratio(ratio),
        "-" if ratio is not None else _ratio(variant["cache_ratio_to_mha"]),
    ]


def cost_cells(variant: Mapping[str, Any], points: Sequence[tuple[int, int]]) -> list[str]:
    """Format what a variant's quality costs.

    Args:
        variant: A result.
        points: Batches and contexts of the decoding to show.
    """
    speed, memory = variant["train_tokens_per_second"], variant["train_peak_memory_bytes"]
    seconds = variant["train_wall_seconds"]
    timed = {(p["batch"], p["context"]): p["ms_per_token"] for p in variant.get("decode", [])}
    return [
        _number(speed and round(speed)),
        _number(memory and round(memory / 2**20)),
        "-" if seconds is None else f"{seconds / 60:.1f}",
        *(f"{timed[point]:.2f}" if point in timed else "-" for point in points),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 1000 or (value == int(value) and value > 1):
        return f"{value:,.0f}"
    return f"{value:.3f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def cache_heading(variants: Sequence[Mapping[str, Any]]) -> str:
    """Head a column of `kv_cache_bytes_at_context` with the context, where it is one."""
    contexts = {cache_context_of(variant) for variant in variants}
    return f"KV bytes at {contexts.pop():,}" if len(contexts) == 1 else "KV bytes at its context"


def _seed(seed: int | None) -> str:
    return "-" if seed is None else str(seed)


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _interval(interval: Sequence[float] | None, style: str) -> str:
    return "-" if interval is None else " to ".join(style.format(end) for end in interval)


def table(variants: Sequence[Mapping[str, Any]], style: str, *, with_costs: bool = False) -> str:
    """Lay the variants of a group out; style `simple` for a terminal, `github` for Markdown.

    Args:
        variants: Results, of one protocol card.
        style: Of tabulate.
        with_costs: Training and decoding too, in the same table.
    """
    points = timed_points(variants) if with_costs else []
    headers = [*QUALITY, cache_heading(variants), *CACHE]
    body = [quality_cells(variant) for variant in variants]
    if with_costs:
        headers += [*COSTS, *(f"ms/token b{batch} c{context:,}" for batch, context in points)]
        body = [[*row, *cost_cells(v, points)] for row, v in zip(body, variants, strict=True)]
    # The name of the baseline says nothing where there is one.
    several = len({variant["baseline"] for variant in variants} - {None}) > 1
    return _laid_out_filled(headers, body, style, without=() if several else ("against",))


def _laid_out_filled(
    headers: Sequence[str],
    body: Sequence[Sequence[str]],
    style: str,
    without: Sequence[str] = (),
) -> str:
    """Lay cells out without some columns, and without those of nothing, which say nothing."""
    kept = [
        column
        for column, name in enumerate(headers)
        if any(row[column] != "-" for row in body) and name not in without
    ]
    return _laid_out(
        [headers[column] for column in kept],
        [[row[column] for column in kept] for row in body],
        style,
    )


def _laid_out(headers: Sequence[str], body: Sequence[Sequence[str]], style: str) -> str:
    """Lay cells out, words to the left and numbers to the right."""
    return tabulate(
        body,
        headers=headers,
        tablefmt=style,
        colalign=["left" if name in _WORDS else "right" for name in headers],
        disable_numparse=True,
    )


def timed_points(variants: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return the smallest batch at the shortest and the longest context that was timed."""
    found = sorted({(p["batch"], p["context"]) for v in variants for p in v.get("decode", [])})
    smallest = [point for point in found if point[0] == found[0][0]]
    return list(dict.fromkeys([*smallest[:1], *smallest[-1:]]))


def run_table(rows: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay the runs of a group out, each against the baseline's run of its seed."""
    headers = (
        *("run", "seed", "perplexity", "95 % text", "word perplexity", "bits/byte"),
        *("vs baseline", "95 % text", "against"),
    )
    body = [
        [
            *(row["run_name"], _seed(row["seed"]), _number(row["perplexity"])),
            _interval(row["perplexity_ci95"], "{:,.2f}"),
            *(_number(row["word_perplexity"]), _number(row["bits_per_byte"])),
            "-" if row["delta_nll"] is None else f"{100 * math.expm1(row['delta_nll']):+,.2f} %",
            _interval(
                row["delta_nll_ci95"] and [100 * math.expm1(end) for end in row["delta_nll_ci95"]],
                "{:+,.2f}",
            ),
            row["baseline_run"] or "-",
        ]
        for row in rows
    ]
    return _laid_out(headers, body, style)


def budget_table(variants: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay out where the parameters are, what is cached, and what a token costs to train on."""
    parts = ("embeddings", "attention", "mlp", "norms", "total")
    headers = ["variant", *parts, cache_heading(variants), "of MHA's", "training FLOPs/token"]
    body = []
    for variant in variants:
        budget = variant["budget"]
        flops = budget["training_flops_per_token"]
        body.append(
            [
                variant["name"],
                *(_number(budget[part]) for part in parts),
                _bytes(budget["kv_cache_bytes_at_context"]),
                _ratio(budget["cache_ratio_to_mha"]),
                "-" if flops is None else f"{flops:.3e}",
            ]
        )
    return _laid_out(headers, body, style)


def cache_table(variants: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay out how a cache grows: a fixed part, bytes a token, and those once windows are full.

    Args:
        variants: Results; what was measured has `kv_cache_curve` and `kv_cache_points`.
        style: As for `table`.

    Returns:
        A table; empty if no variant has a curve.
    """
    headers = ["variant", "fixed", "bytes/token", "up to", "bytes/token beyond"]
    headers += [cache_heading(variants), "read/step", "measured at"]
    body = []
    for variant in variants:
        if (curve := variant.get("kv_cache_curve")) is None:
            continue
        bent = curve["slope"] != curve["slope_beyond"]
        body.append(
            [
                variant["name"],
                _bytes(curve["fixed"]),
                _bytes(curve["slope"]),
                _bytes(curve["plateau"]) if bent else "-",
                _bytes(curve["slope_beyond"]) if bent else "-",
                _bytes(known_bytes_of(variant)),
                _bytes(variant["kv_cache_bytes_read_per_step"]),
                ", ".join(f"{tokens:,}" for tokens, _ in variant["kv_cache_points"]),
            ]
        )
    return _laid_out_filled(headers, body, style) if body else ""


def protocol_line(row: Mapping[str, Any]) -> str:
    """Say in one line how a row's numbers came about."""
    card = row["protocol"]
    # Cards from before the option do not have it.
    documents = ", attention within documents" if card.get("intra_document_mask") else ""
    cached = ""
    if card.get("decode_path", "").startswith("token by token"):
        cached = f", {card['decode_path']}"
    return (
        f"{plain(card['corpus'])}, {plain(card['split'])} split: {row['tokens_scored']:,} tokens "
        f"scored, each once, context {card['context']}, stride {card['stride']}, {card['dtype']}"
        f"{cached}{documents}; {card['words']:,} words, {card['utf8_bytes']:,} bytes; tokenizer "
        f"{card['tokenizer_sha256'][:12]}, data {card['data_fingerprint'][:12]}"
    )


NOTE = (
    "Perplexity is exp(mean nats per token over the seeds), on the split named above. Text: 95 % "
    "interval over its documents, paired by document for a difference: how much the number depends "
    "on which text was scored. Seeds: Student's t, simultaneous for differences: how much it "
    "depends on the randomness of the training. Better, worse: both intervals leave out 0; "
    "equivalent: both lie within the margin (eval.margin); unresolved: neither. "
    f"Too few seeds: no verdict is given below {FEWEST_SEEDS}. Not comparable: what has to be "
    "equal in the two trainings is not."
)
CACHE_NOTE = (
    "KV bytes at a context is what the caches of all layers hold of a sequence of so many tokens, "
    "by the closed form; measured is the live cache's storage after a real decode."
)
READ_NOTE = (
    "read/step is what a decoding step reads of it, where that is not what is stored: layers that "
    "share a cache read it once each."
)
CURVE_NOTE = (
    "Bytes of a sequence of T tokens: fixed + bytes/token x T while no window is full (up to), "
    "then bytes/token beyond for each further token; fitted to live caches after a real decode of "
    "each of the contexts named last, and compared with the closed form. read/step: bytes that a "
    "decoding step reads at the stated context."
)
MOST_PAIRS_PRINTED = 6
"""More of them are in the report only."""
PAIR_NOTE = (
    "Difference of the perplexity, of the variant less the one it is set against. The intervals "
    "over seeds hold for all pairs together, so they are wider than those to the baseline."
)
INFLUENCE_NOTE = (
    "The documents without which the difference to the baseline changes most, and the difference "
    "without each, and without all of them. Where a few make it, it is about them."
)


def note(variants: Sequence[Mapping[str, Any]]) -> str:
    """Explain a table: what is in it, and how seeds were paired where that is not simply so."""
    parts = [NOTE] if any(variant["perplexity"] is not None for variant in variants) else []
    parts += filter(None, [too_little_text(variants)])
    parts.append(CACHE_NOTE)
    if any(bytes_read_of(variant) is not None for variant in variants):
        parts.append(READ_NOTE)
    if any(variant["kv_cache_bytes_per_token"] is None for variant in variants):
        parts.append("kvlab has no formula for an external model: what was measured stands for it.")
    return " ".join([*parts, *pairing_notes(variants)])


def pair_table(pairs: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay out the difference of every two variants.

    Args:
        pairs: As `variants.Group` has them.
        style: As for `table`.
    """
    headers = ("variant", "against", "difference", "95 % (text)", "95 % (seeds)", "verdict")
    body = [
        [
            *(pair["variant"], pair["against"], f"{pair['delta_percent']:+.2f} %"),
            _interval(pair["delta_percent_ci95_text"], "{:+.2f}"),
            _interval(pair["delta_percent_ci95_seeds"], "{:+.2f}"),
            pair["verdict"] + (f" ({pair['verdict_note']})" if pair["verdict_note"] else "")
            if pair["verdict"]
            else "-",
        ]
        for pair in pairs
    ]
    return _laid_out_filled(headers, body, style)


def influence_table(variants: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay out which documents carry a difference to the baseline; empty if there is none."""
    headers = ("variant", "vs baseline", "without", "document", "tokens")
    body: list[list[str]] = []
    for variant in variants:
        rows = variant.get("influential_documents") or []
        for number, row in enumerate(rows):
            first = [variant["name"], f"{variant['delta_percent']:+.2f} %"]
            without = f"{row['delta_percent_without']:+.2f} %"
            last = [without, plain(row["name"]), f"{row['tokens']:,}"]
            body.append([*(first if number == 0 else ["", ""]), *last])
        if len(rows) > 1:
            without = f"{variant['delta_percent_without_influential']:+.2f} %"
            tokens = f"{sum(row['tokens'] for row in rows):,}"
            body.append(["", "", without, f"these {len(rows)} together", tokens])
    return _laid_out(headers, body, style) if body else ""


def across_table(rows: Sequence[Mapping[str, Any]], style: str) -> str:
    """Lay out how variants with different tokenizers compress one text, the best first.

    Args:
        rows: Of one text, as `across_tokenizers.across_tokenizers` returns them.
        style: As for `table`.
    """
    headers = [
        "variant",
        "bits/byte",
        "95 % (text)",
        "vs best",
        "95 % (text) ",
        "tokenizer",
        "tokens",
        "context",
        "stride",
    ]
    headers += ["parameters", cache_heading(rows)]
    one_context = len({row["kv_cache_context"] for row in rows}) == 1
    body = [
        [
            row["name"],
            f"{row['bits_per_byte']:.4f}",
            _interval(row["bits_per_byte_ci95_text"], "{:.4f}"),
            "-" if row["delta_bits_per_byte"] is None else f"{row['delta_bits_per_byte']:+.4f}",
            _interval(row["delta_bits_per_byte_ci95_text"], "{:+.4f}"),
            row["tokenizer_sha256"][:12],
            *(f"{row[key]:,}" for key in ("tokens", "context", "stride", "num_parameters")),
            _bytes(row["kv_cache_bytes_at_context"])
            + ("" if one_context else f" ({row['kv_cache_context']:,})"),
        ]
        for row in rows
    ]
    return _laid_out(headers, body, style)


def decode_sections(variants: Sequence[Mapping[str, Any]], style: str) -> list[str]:
    """Lay the speed of decoding out, a title and a table for each batch; empty if none was timed.

    Args:
        variants: With `decode` and `break_even`, as `variants.add_decode_speed` leaves them.
        style: As for `table`.
    """
    found = []
    points = [point for variant in variants for point in variant.get("decode", [])]
    for batch in sorted({point["batch"] for point in points}):
        contexts = sorted({point["context"] for point in points if point["batch"] == batch})
        beyond = {p["context"] for p in points if p["batch"] == batch and p["beyond_trained"]}
        body = []
        for variant in variants:
            here = {p["context"]: p for p in variant["decode"] if p["batch"] == batch}
            timed = [here.get(context) for context in contexts]
            cells = [
                f"{p['ms_per_token']:,.2f} ({p['roofline_ms']:,.2f})" if p else "-" for p in timed
            ]
            last = timed[-1]
            memory = [
                in_units(last[key]) if last else "-" for key in ("cache_bytes", "peak_extra_bytes")
            ]
            even = variant["break_even"][str(batch)]
            never = "" if variant["is_baseline"] else "-"
            body.append([variant["name"], *cells, *memory, f"{even:,}" if even else never])
        headers = ["variant", *(f"{c:,}{'*' if c in beyond else ''}" for c in contexts)]
        headers += [f"cache at {contexts[-1]:,}", "extra", "faster than baseline from"]
        shown = _laid_out(headers, body, style)
        found += [f"decoding, batch {batch}: ms per token at a context (roofline)", shown]
    return found


def task_sections(
    variants: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any], style: str
) -> list[str]:
    """Lay the tasks of lm-evaluation-harness out: a title and a table for each; empty if none.

    Args:
        variants: Results; with `tasks` where some were run.
        protocol: Their card; its `tasks` says how those were run.
        style: As for `table`.
    """
    found: list[str] = []
    for task in tasks_of(variants):
        metrics = metrics_of(variants, task)
        body = []
        for variant in variants:
            pairs = (value_and_error(variant, task, metric) for metric in metrics)
            cells = [f"{value} ± {error}" if error else value or "-" for value, error in pairs]
            body.append([variant["name"], *cells])
        found += [f"task {plain(task)}: {plain(described(variants, task))}"]
        found += [_laid_out(["variant", *map(plain, metrics)], body, style)]
    return [*found, f"{TASK_NOTE} {plain(protocol['tasks'], 2000)}."] if found else []


DECODE_NOTE = (
    "Decoding: median over rounds in which every variant had a turn, caches filled with noise; "
    "roofline: weights read once, and what a step reads of the cache at that context, at the "
    "measured memory bandwidth; * is longer than the "
    "contexts of some run's training; extra is the most that a step takes beyond weights and "
    "cache; a variant is faster than its baseline from that context on, and at all longer ones "
    "that were measured (-: at none, or there is no baseline). The same weights and cache are read "
    "again and again: what fits into the processor's caches can be faster than this roofline."
)
