"""What a variant's runs scored in tasks, over its seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FACTS = ("n", "version", "num_fewshot")


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what a variant's runs, one a seed, scored in each task.

    Returns:
        By task `n`, `version`, `num_fewshot` and `metrics`: by name `mean`, `stderr` (the mean of
        the seeds') and `by_seed`; None where a run has none. Empty where no run has tasks.
    """
    found = {}
    answers = [row.get("tasks", {}) for row in rows]
    # Seeds are asked the same; one that could not be asked has nothing.
    for task, first in next((some for some in answers if some), {}).items():
        names = [key for key in first if _error_of(key) in first]
        metrics = {}
        for name in names:
            by_seed = [some.get(task, {}).get(name) for some in answers]
            errors = [some.get(task, {}).get(_error_of(name)) for some in answers]
            metrics[name] = {"mean": _mean(by_seed), "stderr": _mean(errors), "by_seed": by_seed}
        found[task] = {key: first[key] for key in FACTS} | {"metrics": metrics}
    return found


def _error_of(metric: str) -> str:
    """Return the key of a metric's standard error; a filter's name stays behind the comma."""
    name, comma, chosen = metric.partition(",")
    return f"{name}_stderr{comma}{chosen}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


TASK_COLUMNS = ["variant", "task", "metric", "value", "stderr", "n", "version", "num_fewshot"]
"""Headings of `task_rows`."""


def tasks_of(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the tasks that variants have results of."""
    return list(dict.fromkeys(task for variant in variants for task in variant.get("tasks", {})))


def metrics_of(variants: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    """Return the names of a task's metrics."""
    found = (name for v in variants for name in v.get("tasks", {}).get(task, {}).get("metrics", {}))
    return list(dict.fromkeys(found))


def described(variants: Sequence[Mapping[str, Any]], task: str) -> str:
    """Say what a task's numbers are of: documents, few-shot examples, version."""
    facts = next(variant["tasks"][task] for variant in variants if task in variant.get("tasks", {}))
    parts = [f"{facts['n']:,} documents"] if facts["n"] is not None else []
    parts += [f"{facts['num_fewshot']}-shot"] if facts["num_fewshot"] is not None else []
    parts += [f"version {facts['version']}"] if facts["version"] is not None else []
    return ", ".join(parts)


def task_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield a row of `TASK_COLUMNS` for each metric of each task of each variant."""
    for variant in variants:
        for task, found in variant.get("tasks", {}).items():
            facts = [found[key] for key in FACTS]
            for name, metric in found["metrics"].items():
                yield [variant["name"], task, name, metric["mean"], metric["stderr"], *facts]
