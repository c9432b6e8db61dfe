"""Results of lm-evaluation-harness's tasks as cells of a report's tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparing.tasks import FACTS

TASK_COLUMNS = ["variant", "task", "metric", "value", "stderr", "n", "version", "num_fewshot"]
"""Headings of `task_rows`."""
TASK_NOTE = (
    "Tasks: mean over the seeds ± lm_eval's standard error, which is over a task's documents and "
    "does not shrink with more seeds; some metrics have none."
)


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


def value_and_error(variant: Mapping[str, Any], task: str, metric: str) -> tuple[str, str]:
    """Format a metric and its standard error; empty where there is none."""
    found = variant.get("tasks", {}).get(task, {}).get("metrics", {}).get(metric, {})
    return _number(found.get("mean")), _number(found.get("stderr"))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4f}"


def task_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield a row of `TASK_COLUMNS` for each metric of each task of each variant."""
    for variant in variants:
        for task, found in variant.get("tasks", {}).items():
            facts = [found[key] for key in FACTS]
            for name, metric in found["metrics"].items():
                yield [variant["name"], task, name, metric["mean"], metric["stderr"], *facts]
