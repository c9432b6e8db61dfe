"""Tables of what a variant costs: parameters, how its cache grows, time and memory of decoding."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from comparing.for_reports import timed_at, timed_points
from comparing.labels import label
from files.sizes import in_units
from reporting.columns import NAME, below, cache_heading, milliseconds, within
from reporting.formats import count, ratio
from reporting.model import Column, Row, Table

_OF_A_CURVE = (
    *("name", "kv_cache_bytes_at_context", "kv_cache_bytes_read_per_step", "kv_cache_points"),
)


def budget_table(variants: Sequence[Row]) -> Table:
    """Describe where parameters are, what is cached, and what a token costs to train on."""
    parts = ("embeddings", "attention", "mlp", "norms", "total")
    rows = [variant["budget"] | {"name": variant["name"]} for variant in variants]
    flops = Column("training_flops_per_token", "training FLOPs/token", "{:.3e}".format)
    columns = [
        NAME,
        *within("Parameters", *(Column(part, label(part), count) for part in parts)),
        *within(
            "KV cache",
            Column("kv_cache_bytes_at_context", cache_heading(variants), count),
            Column("cache_ratio_to_mha", "of MHA's", ratio),
        ),
        *within("Training", flops),
    ]
    return Table("Parameters, cache and compute", rows, columns)


def growth_table(variants: Sequence[Row]) -> Table:
    """Describe how caches grow: a fixed part, bytes a token, and those once windows are full.

    Args:
        variants: With `kv_cache_curve`.
    """
    rows = [
        variant["kv_cache_curve"] | {key: variant[key] for key in _OF_A_CURVE}
        for variant in variants
    ]
    columns = [
        NAME,
        *within(
            "Bytes of a sequence",
            Column("fixed", "fixed", count),
            Column("slope", "bytes/token", count),
            Column("plateau", "up to", count, partial(_if_bent, key="plateau")),
            Column("beyond", "bytes/token beyond", count, partial(_if_bent, key="slope_beyond")),
            Column("kv_cache_bytes_at_context", cache_heading(variants), count),
        ),
        *within("Decoding", Column("kv_cache_bytes_read_per_step", "read/step", count)),
        Column("kv_cache_points", "measured at", _contexts, part="Tokens", kind="word"),
    ]
    return Table("How each cache grows", rows, columns, is_folded=True)


def _if_bent(row: Row, key: str) -> Any:
    return row[key] if row["slope"] != row["slope_beyond"] else None


def _contexts(points: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{tokens:,}" for tokens, _ in points)


def decode_tables(variants: Sequence[Row]) -> list[Table]:
    """Describe the speed of decoding, a table for each batch.

    Args:
        variants: With `decode` and `break_even`, as `decode_speed.add_decode_speed` leaves them.
    """
    points = timed_points(variants)
    return [
        _decode_table(variants, batch, [context for one, context in points if one == batch])
        for batch in sorted({batch for batch, _ in points})
    ]


def _decode_table(variants: Sequence[Row], batch: int, contexts: Sequence[int]) -> Table:
    times: list[Column] = []
    for context in contexts:
        timed = [timed_at(variant, batch, context) for variant in variants]
        mark = "*" if any(point and point["beyond_trained"] for point in timed) else ""
        at = partial(milliseconds, batch=batch, context=context)
        roofline = partial(at, key="roofline_ms")
        times += [
            Column(f"ms_{context}", f"ms at {context:,}{mark}", value=at),
            below(f"roofline_{context}", "roofline", value=roofline, label="roofline"),
        ]

    def memory(variant: Row, key: str) -> Any:
        point = timed_at(variant, batch, contexts[-1])
        return None if point is None else point[key]

    def even(variant: Row) -> str | None:
        context = variant["break_even"].get(str(batch))
        return f"{context:,}" if context else "" if variant["is_baseline"] else None

    bytes_of = (
        Column(key, f"{title} at {contexts[-1]:,}", in_units, partial(memory, key=key))
        for key, title in (("cache_bytes", "cache"), ("peak_extra_bytes", "extra"))
    )
    columns = [
        NAME,
        *within("ms per token at a context", *times),
        *within("Memory", *bytes_of),
        Column("even", "faster than baseline from", value=even, part="Break-even"),
    ]
    return Table(f"Decoding, batch {batch}", variants, columns, is_folded=True)
