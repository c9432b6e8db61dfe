"""A report's tables: which columns each has, how they are formatted and what they mean."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from comparing.for_reports import (
    influential_documents,
    run_percent,
    sureness,
    timed_points,
    times_smaller,
)
from comparing.labels import label
from comparing.plain import plain
from comparing.tasks import described, metrics_of, tasks_of
from comparing.verdicts import VERDICT_MEANING
from files.sizes import in_units
from measuring.kv_cache import bytes_read_of, cache_context_of, known_bytes_of, measured_bytes_of
from reporting.columns import NAME, below, cache_heading, interval, milliseconds, within
from reporting.formats import (
    count,
    duration,
    perplexity,
    ratio,
    signed,
    signed_percent,
    span,
    task_number,
)
from reporting.model import Column, Medium, Row, Table

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
_MEANINGS = {
    "kv_cache_bytes_at_context": "what the caches of all layers hold of one sequence, by the "
    "closed form",
    "kv_cache_bytes_measured": "live storage after a real decode; all there is of an external "
    "model",
    "kv_cache_bytes_read_per_step": "what a decoding step reads: layers that share a cache read "
    "it once each",
    "perplexity": "exp of the mean nats per token over the seeds",
    "perplexity_ci95_text": "95 % interval over the documents of the text",
    "perplexity_ci95_seeds": "95 % interval over training seeds, of differences simultaneous",
    "delta_percent": "difference of the perplexity, paired by document",
    "verdict": VERDICT_MEANING,
}
"""What the note below the comparison says of its columns."""


def baseline_of(variants: Sequence[Row]) -> str:
    """Name what variants are compared with; in general where that is not one."""
    names = {variant["baseline"] for variant in variants} - {None}
    return names.pop() if len(names) == 1 else "its baseline"


def comparison(variants: Sequence[Row]) -> Table:
    """Describe what each variant's cache costs in quality, and its quality in time and memory.

    Args:
        variants: Results, of one protocol card.
    """
    base = baseline_of(variants)
    columns = [
        NAME,
        below("positions", "positions", kind="word", on="report"),
        below("seeds", "seeds", value=_seeds, label="seeds", on="report"),
        *within("Model", Column("num_parameters", "parameters", count, on="report")),
        *within("KV cache", *_cache(variants)),
        *within(
            "Quality",
            Column("perplexity", "perplexity", perplexity, short="ppl"),
            *_intervals("perplexity", perplexity),
            *_difference(f"against {base}", several=base == "its baseline"),
            below("sure", "95 % interval", value=_sure, kind="interval", on="terminal"),
            below("over", "over", value=_over_text, kind="word", on="terminal"),
            *_verdict(),
        ),
        *within(
            "Training",
            Column("train_tokens_per_second", "tokens/s", count, on="report"),
            below("train_wall_seconds", "time", duration, label="in", on="report"),
            below("train_peak_memory_bytes", "peak", in_units, label="peak", on="report"),
        ),
        *within("Decoding", *_speeds(variants)),
    ]
    described = [replace(one, meaning=_MEANINGS.get(one.key, "")) for one in columns]
    return Table("Comparison", variants, described)


def _seeds(variant: Row) -> str:
    return str(len(variant["seeds"]) or "external")


def _cache(variants: Sequence[Row]) -> list[Column]:
    at = below("kv_cache_context", "at", count, label="at")
    several = len({cache_context_of(variant) for variant in variants}) > 1
    columns = [
        Column("kv_cache_bytes_at_context", cache_heading(variants), count, known_bytes_of),
        *([at] if several else []),
        below("smaller", "cache", value=times_smaller, on="terminal"),
    ]
    for key, title, show, value in (
        ("cache_ratio_to_baseline", "of baseline", ratio, None),
        ("cache_ratio_to_mha", "of MHA's", ratio, _of_mha),
        ("kv_cache_bytes_measured", "measured", count, measured_bytes_of),
        ("kv_cache_bytes_read_per_step", "read/step", count, bytes_read_of),
    ):
        columns.append(below(key, title, show, value, label=title, on="report"))
    return columns


def _of_mha(variant: Row) -> Any:
    return None if variant["cache_ratio_to_baseline"] else variant["cache_ratio_to_mha"]


def _intervals(key: str, show: Callable[[float], str]) -> list[Column]:
    """Describe both intervals of a number."""
    kinds = ("text", "seeds")
    return [interval(f"{key}_ci95_{which}", which, show, on="report") for which in kinds]


def _difference(title: str, *, several: bool = False) -> list[Column]:
    """Describe the difference to another variant; where these are several, also which."""
    to = below("baseline", "to", label="to", kind="word", on="report")
    return [
        Column("delta_percent", title, signed_percent),
        *([to] if several else []),
        *_intervals("delta_percent", signed),
    ]


def _verdict() -> list[Column]:
    return [
        Column("verdict", "verdict", kind="verdict"),
        below("verdict_note", "note", value=lambda row: row["verdict_note"] or None, kind="word"),
    ]


def _sure(variant: Row) -> str | None:
    _, interval = sureness(variant)
    return None if interval is None else span(interval, signed)


def _over_text(variant: Row) -> str | None:
    """Say that an interval is not over seeds, as it is wherever there are several."""
    return "over the text" if sureness(variant).over == "the text" else None


def _speeds(variants: Sequence[Row]) -> Iterator[Column]:
    """Describe the smallest batch at the shortest and the longest context that were timed."""
    points = timed_points(variants)
    smallest = [point for point in points if point[0] == points[0][0]]
    for batch, context in dict.fromkeys([*smallest[:1], *smallest[-1:]]):
        title = f"ms/token, batch {batch}, at {context:,}"
        value = partial(milliseconds, batch=batch, context=context)
        on: Medium | None = None if (batch, context) == smallest[-1] else "report"
        yield Column(f"ms_{batch}_{context}", title, value=value, short="ms per token", on=on)


def run_table(rows: Sequence[Row]) -> Table:
    """Describe the runs of a group, each against the baseline's run of its seed."""
    change, ends = (partial(_of_run, index=index) for index in (0, 1))
    columns = [
        Column("run_name", "run", kind="word"),
        Column("seed", "seed"),
        *within(
            "Quality",
            Column("perplexity", "perplexity", perplexity),
            interval("perplexity_ci95", "text", perplexity),
        ),
        *within("Other units", *_other_units()),
        *within(
            "Difference",
            Column("delta", "against the baseline", signed_percent, change),
            interval("delta_ci95", "text", signed, value=ends),
            below("baseline_run", "to", label="to", kind="word"),
        ),
    ]
    return Table("Every run", rows, columns, is_folded=True)


def _of_run(row: Row, index: int) -> Any:
    return run_percent(row)[index]


def _other_units() -> list[Column]:
    return [
        Column("bits_per_byte", "bits/byte", "{:.4f}".format),
        Column("word_perplexity", "perplexity per word", perplexity),
    ]


def units_table(variants: Sequence[Row]) -> Table:
    """Describe perplexity's spread over seeds and quality in other units."""
    sd = Column("perplexity_sd", "standard deviation", "{:.3f}".format)
    nats = Column("nll", "nats/token", "{:.4f}".format)
    columns = [NAME, *within("Perplexity", sd), *within("Other units", nats, *_other_units())]
    return Table("Other units", variants, columns, is_folded=True)


def pair_table(pairs: Sequence[Row]) -> Table:
    """Describe the difference of every two variants, rows of pairs.json."""
    columns = [
        Column("variant", "variant", kind="word"),
        Column("against", "against", kind="word", part="Pair"),
        *within("Perplexity", *_difference("difference"), *_verdict()),
    ]
    return Table("Every pair", pairs, columns, is_folded=True)


def influence_table(variants: Sequence[Row]) -> Table:
    """Describe which documents carry a difference to the baseline."""
    document = Column("documents", "document", plain, kind="word")
    columns = [
        NAME,
        *within("Text", document, Column("tokens", "tokens", count)),
        *within(
            "Difference",
            Column("delta_percent", "whole", signed_percent),
            Column("delta_percent_without", "without it", signed_percent),
        ),
    ]
    rows = [*influential_documents(variants)]
    return Table("Most influential documents", rows, columns, is_folded=True)


def across_table(rows: Sequence[Row], caption: str = "") -> Table:
    """Describe how variants with different tokenizers compress one text, the best first.

    Args:
        rows: Of one text, as `across_tokenizers.across_tokenizers` returns them.
        caption: Of the table.
    """
    bits, change = "{:.4f}".format, "{:+.4f}".format
    at = below("kv_cache_context", "at", count, label="at")
    several = len({row["kv_cache_context"] for row in rows}) > 1
    columns = [
        NAME,
        *within(
            "Quality",
            Column("bits_per_byte", "bits/byte", bits),
            interval("bits_per_byte_ci95_text", "text", bits),
            Column("delta_bits_per_byte", "against the best", change),
            interval("delta_bits_per_byte_ci95_text", "text", change),
        ),
        *within(
            "Reading",
            Column("tokenizer_sha256", "tokenizer", lambda sha: sha[:12], kind="word"),
            *(Column(key, key, count) for key in ("tokens", "context", "stride")),
        ),
        *within(
            "Model",
            Column("num_parameters", "parameters", count),
            Column("kv_cache_bytes_at_context", cache_heading(rows), count),
            *([at] if several else []),
        ),
    ]
    return Table(caption, rows, columns)


def task_tables(variants: Sequence[Row]) -> list[Table]:
    """Describe the tasks of lm-evaluation-harness, a table for each with its standard errors."""
    return [_task_table(variants, task) for task in tasks_of(variants)]


def _task_table(variants: Sequence[Row], task: str) -> Table:
    def of(variant: Row, metric: str, key: str) -> Any:
        metrics: Mapping[str, Any] = variant.get("tasks", {}).get(task, {}).get("metrics", {})
        return metrics.get(metric, {}).get(key)

    columns = [NAME]
    for metric in metrics_of(variants, task):
        value, error = (partial(of, metric=metric, key=key) for key in ("mean", "stderr"))
        columns += within(
            plain(task),
            Column(metric, plain(label(metric)), task_number, value),
            below(f"{metric}_stderr", "±", task_number, error, label="±"),
        )
    return Table(plain(f"Task {task}: {described(variants, task)}", 120), variants, columns)
