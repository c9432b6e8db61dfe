"""Numbers that reports show and that follow from results: intervals, fronts, curves, ratios."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from comparing.differences import mapped, percent
from comparing.statistics import FEWEST_DOCUMENTS, Interval
from measuring.kv_cache import cache_bytes_of, has_known_cache

Row = Mapping[str, Any]
"""A variant's result, as variants.json has it, or a run's row."""


class Sure(NamedTuple):
    """The 95 % interval by which a difference is judged first.

    Attributes:
        over: "seeds" or "the text"; empty where there is no interval.
        interval: Low and high, in percent.
    """

    over: str
    interval: Interval | None


def sureness(variant: Row) -> Sure:
    """Return the interval over seeds of a difference in percent, else that over the text."""
    for over, key in (("seeds", "seeds"), ("the text", "text")):
        if found := variant[f"delta_percent_ci95_{key}"]:
            return Sure(over, found)
    return Sure("", None)


def noise_of(variant: Row) -> str:
    """Name the noise that a difference lies within: of the seeds, where it is in theirs."""
    by_seed = variant["delta_percent_ci95_seeds"]
    in_seeds = by_seed is not None and by_seed[0] <= 0.0 <= by_seed[1]
    return in_words(len(variant["seeds"])) if in_seeds else "the text"


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def in_words(*seeds: int) -> str:
    """Return numbers of seeds in words: one seed, three seeds, two or 12 seeds."""
    numbers = [_WORDS[number] if number < len(_WORDS) else str(number) for number in seeds]
    return f"{' or '.join(numbers)} {'seed' if seeds == (1,) else 'seeds'}"


def pareto_front(variants: Sequence[Row]) -> list[Row]:
    """Return, from the smallest cache up, those that no variant with as small a cache beats."""
    shown = [v for v in variants if v["perplexity"] is not None and has_known_cache(v)]
    front: list[Row] = []
    for variant in sorted(shown, key=lambda v: (cache_bytes_of(v), v["perplexity"])):
        if not front or variant["perplexity"] < front[-1]["perplexity"]:
            front.append(variant)
    return front


def run_percent(row: Row) -> tuple[float | None, Interval | None]:
    """Return a run's difference to the baseline's run in percent, and its interval."""
    nats = row["delta_nll"]
    return (None if nats is None else percent(nats)), mapped(percent, row["delta_nll_ci95"])


def times_smaller(variant: Row) -> str | None:
    """Say how many times smaller or larger a cache is than the baseline's; None if not known."""
    ratio = variant["cache_ratio_to_baseline"]
    if not ratio or variant["is_baseline"]:
        return None
    if round(ratio, 3) == 1.0:
        return "same size"
    times = f"{max(ratio, 1 / ratio):,.1f}".removesuffix(".0")
    return f"{times}x {'smaller' if ratio < 1 else 'larger'}"


def influential_documents(variants: Sequence[Row]) -> Iterator[Row]:
    """Yield the documents that carry each variant's difference, and all of a variant together."""
    for variant in variants:
        rows = variant.get("influential_documents") or []
        of_variant = {key: variant[key] for key in ("name", "delta_percent")}
        for row in rows:
            yield row | of_variant | {"documents": row["name"]}
        if len(rows) > 1:
            yield of_variant | {
                "documents": f"these {len(rows)} together",
                "tokens": sum(row["tokens"] for row in rows),
                "delta_percent_without": variant["delta_percent_without_influential"],
            }


def timed_at(variant: Row, batch: int, context: int) -> Row | None:
    """Return what was timed of a variant at a batch and a context."""
    points = variant.get("decode") or []
    return next((p for p in points if (p["batch"], p["context"]) == (batch, context)), None)


def timed_points(variants: Sequence[Row]) -> list[tuple[int, int]]:
    """Return every batch and context that was timed, sorted."""
    return sorted({(p["batch"], p["context"]) for v in variants for p in v.get("decode") or []})


class SeedLine(NamedTuple):
    """A variant's validation perplexity during training."""

    variant: str
    attention: str
    layers: str | None
    seeds: int
    tokens: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def seed_lines(curves: Mapping[str, Row]) -> list[SeedLine]:
    """Gather the curves of runs by variant, at the tokens at which all seeds were validated.

    Args:
        curves: By run name, each with `variant`, `attention`, `layers`, `tokens` and `perplexity`.

    Returns:
        By variant the mean of the logarithms over seeds, and the lowest and the highest of them.
    """
    runs_of: dict[str, list[Row]] = {}
    for curve in curves.values():
        if curve["tokens"]:  # else a run without its metrics
            runs_of.setdefault(curve["variant"], []).append(curve)
    lines = []
    for variant, runs in runs_of.items():
        values = [dict(zip(run["tokens"], run["perplexity"], strict=True)) for run in runs]
        tokens = sorted(set.intersection(*(set(by_tokens) for by_tokens in values)))
        if not tokens:
            continue
        at = [[by_tokens[token] for by_tokens in values] for token in tokens]
        mean = [math.exp(math.fsum(map(math.log, found)) / len(found)) for found in at]
        low, high = [min(found) for found in at], [max(found) for found in at]
        kind = runs[0]["attention"], runs[0].get("layers")
        lines.append(SeedLine(variant, *kind, len(runs), tokens, mean, low, high))
    return lines


def too_few_documents(variants: Sequence[Row]) -> list[int]:
    """Return the numbers of documents that are too few for an interval over the text."""
    counts = {count for v in variants if (count := v.get("documents_scored")) is not None}
    return sorted(count for count in counts if count < FEWEST_DOCUMENTS)
