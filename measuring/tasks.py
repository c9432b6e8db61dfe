"""Tasks of lm-evaluation-harness on a model; `harness.tasks` runs them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from modeling.gpt import GPT
from settings.evaluation import EvalSettings
from tracking.failures import is_out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        name: The model's name.
        settings: Whether there is anything but the tasks.

    Returns:
        A row's `tasks`, or nothing where they failed, and notes.

    Raises:
        ValueError: Where they failed, and nothing else was asked for.
    """
    try:
        found, notes = ask()
    except (ValueError, MemoryError, RuntimeError) as error:
        is_expected = isinstance(error, ValueError) or is_out_of_memory(error)
        if not is_expected or not settings.perplexity:
            raise
        return {}, [f"{name} has no results of tasks: {' '.join(str(error).split())}"]
    return {"tasks": found}, notes
