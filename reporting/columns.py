"""Columns and headings that several tables share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from comparing.for_reports import timed_at
from measuring.kv_cache import cache_context_of
from reporting.formats import (
    span,
)
from reporting.model import Column, Row

NAME = Column("name", "variant", kind="word")
below = partial(Column, below=True)


def within(part: str, *columns: Column) -> list[Column]:
    """Put columns under a common heading."""
    return [replace(column, part=part) for column in columns]


def interval(key: str, which: str, show: Callable[[float], str], **more: Any) -> Column:
    """Describe an interval of the number before it."""
    show_both = partial(span, show=show)
    return below(key, f"95 % ({which})", show_both, label=which, kind="interval", **more)


def cache_heading(variants: Sequence[Row]) -> str:
    """Head a column of `kv_cache_bytes_at_context` with the context, where it is one."""
    contexts = {cache_context_of(variant) for variant in variants}
    return f"KV bytes at {contexts.pop():,}" if len(contexts) == 1 else "KV bytes at its context"


def milliseconds(variant: Row, batch: int, context: int, key: str = "ms_per_token") -> str | None:
    """Write a time of a decoding step; None where it was not measured."""
    point = timed_at(variant, batch, context)
    return None if point is None else f"{point[key]:,.2f}"
