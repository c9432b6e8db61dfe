"""Results of lm-evaluation-harness's tasks in a report; `interop.harness` runs them."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from evaluation.settings import EvalSettings
from modeling.gpt import GPT
from tracking.failures import is_out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TASK_COLUMNS = ["variant", "task", "metric", "value", "stderr", "n", "version", "num_fewshot"]
"""Headings of `task_rows`."""
TASK_NOTE = (
    "Tasks: mean over the seeds ± lm_eval's standard error, which is over a task's documents and "
    "does not shrink with more seeds; some metrics have none."
)
_FACTS = ("n", "version", "num_fewshot")


class TaskScorer(Protocol):
    """Tasks that are loaded, to be run on one model after the other."""

    protocol: str
    """How the results come about, in one line."""

    def score(
        self, model: GPT, tokenizer: "Tokenizer", end_of_document_id: int, batch_size: int
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Run them on a model in evaluation mode.

        Returns:
            By task: each METRIC, METRIC_stderr (None where there is none), `n` (documents),
            `version` and `num_fewshot`; and what a reader should know, a line each.

        Raises:
            ValueError: If the model cannot be asked.
        """
        ...


def answers_of(
    ask: Callable[[], tuple[dict[str, dict[str, Any]], list[str]]],
    name: str,
    settings: EvalSettings,
) -> tuple[dict[str, Any], list[str]]:
    """Run tasks on a model; where they fail, what was scored before is kept.

    Args:
        ask: Runs them, as `TaskScorer.score`.
        name: Of the model.
        settings: Whether there is anything but the tasks.

    Returns:
        A row's `tasks`, or nothing where they failed, and notes.

    Raises:
        ValueError: Where they failed, and nothing else was asked for.
    """
    try:
        found, notes = ask()
    except (ValueError, MemoryError, RuntimeError) as error:
        is_told = isinstance(error, ValueError) or is_out_of_memory(error)
        if not is_told or not settings.perplexity:
            raise
        return {}, [f"{name} has no results of tasks: {' '.join(str(error).split())}"]
    return {"tasks": found}, notes


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
        found[task] = {key: first[key] for key in _FACTS} | {"metrics": metrics}
    return found


def _error_of(metric: str) -> str:
    """Return the key of a metric's standard error; a filter's name stays behind the comma."""
    name, comma, chosen = metric.partition(",")
    return f"{name}_stderr{comma}{chosen}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


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
            facts = [found[key] for key in _FACTS]
            for name, metric in found["metrics"].items():
                yield [variant["name"], task, name, metric["mean"], metric["stderr"], *facts]
