"""What a variant's runs scored in tasks, over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
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
