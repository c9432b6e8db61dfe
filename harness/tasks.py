"""Tasks of lm-evaluation-harness (lm_eval) on a model, as a report shows them.

Tasks that the installed lm_eval brings are code of that package, as trusted as it is. Task files of
a user's folder are data: `harness.task_files` reads them. Of either, templates are rendered in
jinja's sandbox, and no metric is fetched from the Hub, whose metrics are code.
"""

import difflib
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.hub.connection import check_reachable
from data.hub.watch import watched
from harness.errors import TaskError
from harness.lm_eval_setup import (
    SEEDS,
    VERSION,
    in_one_line,
    quietly,
    require_accelerate,
    require_lm_eval,
    sandbox_templates,
    seed_everything,
)
from harness.members import (
    is_local,
    leaves_of,
    names_of,
    referred,
    require_no_code,
    require_own_data,
)
from harness.model import language_model
from harness.task_files import read_task_files, write_copies
from interop.library import silenced
from interop.transformers_model import LOGITS_AT_ONCE
from modeling.gpt import GPT

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_ITERATIONS = 1000
"""For standard errors that have no closed form; lm_eval takes 100 of them for BLEU and its like."""


class Tasks:
    """Tasks that are loaded, with their documents, to be run on one model after the other.

    Args:
        loaded: What lm_eval's TaskManager returns: "tasks" and "groups" by name.
        limit: The first documents of each task that are asked; None for all.
        protocol: How the results of `score` come about, in one line.

    Attributes:
        protocol: How the results of `score` come about, in one line.
        protocol_of_transformers: The same of `score_pretrained`.
    """

    def __init__(self, loaded: dict[str, Any], limit: int | None, protocol: str) -> None:
        self._loaded, self._limit = loaded, limit
        self.protocol = protocol
        self.protocol_of_transformers = (
            f"{protocol}; by lm_eval's HFLM, with the tokenizer's own settings"
        )

    def score(
        self, model: GPT, tokenizer: "Tokenizer", end_of_document_id: int, batch_size: int
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Run the tasks on a model of kvlab's.

        Args:
            model: In evaluation mode.
            tokenizer: That of its training.
            end_of_document_id: The id of the token that ends a document.
            batch_size: Sequences computed together; does not change the result.

        Returns:
            What `run` does, and what a reader of it should know, a line each.

        Raises:
            TaskError: As `run`.
        """
        asked = language_model(model, tokenizer, end_of_document_id, batch_size)
        found = self.run(asked)
        if not asked.num_cut:
            return found, []
        return found, [
            f"{asked.num_cut:,} of the tasks' texts did not fit the context of "
            f"{asked.max_length:,} tokens: their beginning was left out"
        ]

    def score_pretrained(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Run the tasks on a model of transformers', through lm_eval's own HFLM.

        Args:
            model: In evaluation mode.
            tokenizer: Its own.
            batch_size: Texts computed together; fewer where their logits would be too many.

        Returns:
            As `score`.

        Raises:
            TaskError: As `run`, and without accelerate.
        """
        require_accelerate()
        from lm_eval.models.huggingface import HFLM

        with silenced():
            with quietly():
                asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            # HFLM holds them, and their log-softmax, for a whole batch.
            logits_of_a_text = asked.max_length * model.config.get_text_config().vocab_size
            asked.batch_size_per_gpu = min(batch_size, max(1, LOGITS_AT_ONCE // logits_of_a_text))
            return self.run(asked), []

    def run(self, model: "LM") -> dict[str, dict[str, Any]]:
        """Ask a model and measure its answers.

        Args:
            model: As lm_eval takes it.

        Returns:
            By task or group: each metric, its standard error as METRIC_stderr (None where there is
            none), and `n` (documents), `version`, `num_fewshot`. A filter's name follows after a
            comma: exact_match,strict-match.

        Raises:
            TaskError: If a task asks for what the model cannot do, or does not fit its data.
        """
        from lm_eval.evaluator import evaluate

        for task in self._loaded["tasks"].values():
            # Otherwise a later model would be shown other examples.
            task.set_fewshot_seed(SEEDS["few-shot examples"])
        with quietly(), in_one_line("eval.tasks"):
            seed_everything()
            found = evaluate(
                model,
                self._loaded,
                limit=self._limit,
                bootstrap_iters=BOOTSTRAP_ITERATIONS,
                log_samples=False,
            )
        return {
            name: metrics | _facts(name, found)
            for name, values in found["results"].items()
            if (metrics := _metrics(values))  # a group may have none of its own
        }


def load_tasks(
    names: Sequence[str],
    task_folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> Tasks:
    """Find and load tasks with their data.

    Args:
        names: Names of tasks, groups or tags.
        task_folder: Task files in addition to lm_eval's own; None for none.
        num_fewshot: Examples before each question, where a task does not insist on none; None
            leaves it to the task.
        limit: The first documents of each task that are asked; None for all.

    Raises:
        DataError: If data has to come from the Hub, which does not answer.
        TaskError: If lm_eval is not there, a name is unknown, a task file is refused, a task
            needs code that is not run, or its data cannot be loaded.
    """
    require_lm_eval()
    own = [] if task_folder is None else read_task_files(task_folder)
    with tempfile.TemporaryDirectory() as copies, quietly():
        sandbox_templates()
        write_copies(own, Path(copies))
        manager = _manager(names, own, Path(copies))
        for name in names:
            _require_known(name, manager)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            part = _load(name, manager)
            for task in part["tasks"].keys() & loaded["tasks"].keys():
                raise TaskError(f"eval.tasks: '{task}' is asked for twice, by {name} too")
            for kind in loaded:
                loaded[kind] |= part[kind]
    for task in loaded["tasks"].values():
        wanted = task.get_config("num_fewshot")
        if num_fewshot is not None and wanted != 0:
            wanted = num_fewshot
        task.set_config("num_fewshot", wanted or 0)
    names_of_folder = names_of(own) & {*names, *loaded["tasks"]}
    return Tasks(loaded, limit, _protocol(loaded["tasks"], names_of_folder, limit))


def _manager(names: Sequence[str], own: Sequence[Mapping[str, Any]], copies: Path) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    defined, asked = names_of(own), set(names)
    for config in own:
        asked |= set(referred(config))
    # Its own tasks are thousands of files, which take seconds to read.
    return TaskManager(include_path=str(copies), include_defaults=not asked <= defined)


def _require_known(name: str, manager: "TaskManager") -> None:
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`"
        raise TaskError(f"eval.tasks: lm_eval has no task, group or tag '{name}'; {hint}")


def _load(name: str, manager: "TaskManager") -> Mapping[str, Any]:
    """Load what a name stands for, once it is known to bring no code."""
    leaves = [*leaves_of(name, manager)]
    for leaf in leaves:
        require_own_data(leaf)
        require_no_code(leaf.name, leaf.config)
    what, alternative = f"the data of task '{name}'", "leave it out of eval.tasks"

    def load() -> Any:
        seed_everything()
        return manager.load([name])

    with in_one_line(f"eval.tasks: '{name}'"):
        if all(is_local(leaf.config) for leaf in leaves):
            return load()
        check_reachable(what, alternative)
        return watched(what, load, alternative)


def _metrics(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics and standard errors by name; of those keys alone that have a filter."""
    found: dict[str, float | None] = {}
    for key, value in values.items():
        name, comma, chosen = key.partition(",")
        if comma:
            is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
            found[name if chosen == "none" else key] = float(value) if is_number else None
    return found


def _facts(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n": found["results"][name].get("sample_len"),
        "version": _version(found["versions"].get(name)),
        "num_fewshot": found["n-shot"].get(name),
    }


def _version(value: Any) -> str | None:
    """Return a task's or group's version as text; lm_eval has placeholders for none."""
    return None if value in (None, "Yaml", "N/A") else str(value)


def _protocol(tasks: Mapping[str, Any], of_folder: set[str], limit: int | None) -> str:
    listed = ", ".join(
        f"{name} version {_version(task.VERSION) or 'unknown'} "
        f"{task.get_config('num_fewshot')}-shot"
        for name, task in tasks.items()
    )
    limited = "" if limit is None else f"; limited to the first {limit} documents of each"
    brought = f"; of eval.task_folder: {', '.join(sorted(of_folder))}" if of_folder else ""
    return f"lm_eval {VERSION}: {listed}{limited}{brought}"
