"""Tasks of lm-evaluation-harness (lm_eval) on a model, as a report shows them.

Tasks that the installed lm_eval brings are code of that package, as trusted as it is. Task files of
a user's folder are data: `harness.task_files` reads them. Of either, templates are rendered in
jinja's sandbox, and no metric is fetched from the Hub, whose metrics are code.
"""

import contextlib
import difflib
import io
import logging
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.model import language_model
from harness.task_files import DATASET_KEYS, LOCAL_BUILDERS, read_task_files, write_copies
from interop.errors import InteropError
from interop.transformers_model import LOGITS_AT_ONCE, silenced
from modeling.errors import ModelConfigError
from modeling.gpt import GPT

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = "0.4.13"
"""Of lm_eval: what is done against code in task files was checked with this one."""
BOOTSTRAP_ITERATIONS = 1000
"""For standard errors that have no closed form; lm_eval takes 100 of them for BLEU and its like."""
_SEEDS = {"random": 0, "numpy": 1234, "few-shot examples": 1234}
"""lm_eval's own defaults."""
_ALONE = "DISABLE_MULTIPROC"


class Tasks:
    """Tasks that are loaded, with their documents, to be run on one model after the other.

    Args:
        loaded: What lm_eval's TaskManager returns: "tasks" and "groups" by name.
        limit: The first documents of each task that are asked; None for all.
        protocol: How the results of `score` come about, in one line.

    Attributes:
        protocol: That.
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
            tokenizer: Of its training.
            end_of_document_id: Of the token that ends a document.
            batch_size: Sequences computed together; does not change the result.

        Returns:
            What `run` does, and what a reader of it should know, a line each.

        Raises:
            InteropError: As `run`.
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
            InteropError: As `run`, and without accelerate.
        """
        require_accelerate()
        from lm_eval.models.huggingface import HFLM

        with silenced():
            with _quietly():
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
            InteropError: If a task asks for what the model cannot do, or does not fit its data.
        """
        from lm_eval.evaluator import evaluate

        for task in self._loaded["tasks"].values():
            # Otherwise a later model would be shown other examples.
            task.set_fewshot_seed(_SEEDS["few-shot examples"])
        with _quietly(), _one_line("eval.tasks"):
            _seed()
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
        names: Of tasks, groups or tags.
        task_folder: Task files besides lm_eval's own; None for none.
        num_fewshot: Examples before each question, where a task does not insist on none; None
            leaves it to the task.
        limit: The first documents of each task that are asked; None for all.

    Raises:
        DataError: If data has to come from the Hub, which does not answer.
        InteropError: If lm_eval is not there, a name is unknown, a task file is refused, a task
            needs code that is not run, or its data cannot be loaded.
    """
    _require_lm_eval()
    own = [] if task_folder is None else read_task_files(task_folder)
    with tempfile.TemporaryDirectory() as copies, _quietly():
        _sandbox_templates()
        write_copies(own, Path(copies))
        manager = _manager(names, own, Path(copies))
        for name in names:
            _require_known(name, manager)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            part = _load(name, manager)
            for task in part["tasks"].keys() & loaded["tasks"].keys():
                raise InteropError(f"eval.tasks: '{task}' is asked for twice, by {name} too")
            for kind in loaded:
                loaded[kind] |= part[kind]
    for task in loaded["tasks"].values():
        wanted = task.get_config("num_fewshot")
        if num_fewshot is not None and wanted != 0:
            wanted = num_fewshot
        task.set_config("num_fewshot", wanted or 0)
    names_of_folder = _names(own) & {*names, *loaded["tasks"]}
    return Tasks(loaded, limit, _protocol(loaded["tasks"], names_of_folder, limit))


def require_accelerate() -> None:
    """Make sure that lm_eval's HFLM can be imported; lm_eval itself does not ask for it.

    Raises:
        InteropError: If accelerate is not installed.
    """
    if _installed("accelerate") is None:
        raise InteropError(
            "eval.tasks on a model in transformers' own modules needs accelerate; run: pip "
            f'install "lm_eval=={VERSION}" accelerate'
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _require_lm_eval() -> None:
    version = _installed("lm_eval")
    if version != VERSION:
        raise InteropError(
            f"eval.tasks needs lm-evaluation-harness {VERSION}, and {version or 'none'} is "
            f'installed; run: pip install "lm_eval=={VERSION}"'
        )


def _names(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of tasks, groups and tags that task files define."""
    found = set()
    for config in configs:
        tags = config.get("tag") or []
        found |= {config.get("group") or config["task"]}
        found |= set(tags if isinstance(tags, list) else [tags])
    return found


def _manager(names: Sequence[str], own: Sequence[Mapping[str, Any]], copies: Path) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    defined, asked = _names(own), set(names)
    for config in own:
        asked |= set(_members(config))
    # Its own tasks are thousands of files, which take seconds to read.
    return TaskManager(include_path=str(copies), include_defaults=not asked <= defined)


def _members(group: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a group's configuration refers to."""
    members = group.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield member
        elif "group" in member:
            yield member["group"]
            yield from _members(member)
        else:
            yield str(member.get("task"))


def _require_known(name: str, manager: "TaskManager") -> None:
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`"
        raise InteropError(f"eval.tasks: lm_eval has no task, group or tag '{name}'; {hint}")


class _Leaf(NamedTuple):
    """A task that will be asked, as lm_eval will put it together.

    Functions are the names of lm_eval's, for nothing is imported yet.

    Attributes:
        name: Of the task.
        layers: Configurations, later ones win, and whether lm_eval brings them.
    """

    name: str
    layers: list[tuple[Mapping[str, Any], bool]]

    @property
    def config(self) -> dict[str, Any]:
        """What the layers come to."""
        return {key: value for config, _ in self.layers for key, value in config.items()}


def _leaves(
    member: str | Mapping[str, Any],
    manager: "TaskManager",
    is_of_harness: bool = True,
    changes: Sequence[tuple[Mapping[str, Any], bool]] = (),
    above: frozenset[str] = frozenset(),
) -> Iterator[_Leaf]:
    """Yield the tasks behind a name, or a group's member.

    Args:
        member: That.
        manager: Knows the names.
        is_of_harness: Whether a file of lm_eval's holds the member.
        changes: What the groups above set for all their members; later ones win.
        above: The names of those.
    """
    own: Mapping[str, Any] = {"task": member} if isinstance(member, str) else member
    name = own.get("group") or own["task"]
    layers = [*changes, (own, is_of_harness)]
    entry = manager.task_index.get(name)
    if entry is not None:
        if entry.yaml_path is not None:
            is_of_harness = entry.yaml_path.is_relative_to(_package())
        layers = [(entry.cfg or {}, is_of_harness), *layers]
    elif "group" in own:  # what is above it wins
        layers = [(own, is_of_harness), *changes]
    members = layers[0][0].get("task")
    if entry is not None and entry.yaml_path is None:  # a tag
        members = sorted(entry.tags)
    if not isinstance(members, list):
        yield _Leaf(name, layers)
    elif name not in above:
        passed = [(_for_members(config), origin) for config, origin in layers]
        for inner in members:
            yield from _leaves(inner, manager, is_of_harness, passed, above | {name})


def _for_members(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lm_eval hands on to a group's members: all but the group's own keys."""
    from lm_eval.config.group import GroupConfig

    of_groups = {field.name for field in fields(GroupConfig)}
    return {key: value for key, value in group.items() if key not in of_groups}


def _package() -> Path:
    """Return where lm_eval is."""
    import lm_eval

    return Path(lm_eval.__file__).parent


def _load(name: str, manager: "TaskManager") -> Mapping[str, Any]:
    """Load what a name stands for, once it is known to bring no code."""
    from data.hub import check_reachable
    from data.hub_watch import watched

    leaves = [*_leaves(name, manager)]
    for leaf in leaves:
        _require_own_data(leaf)
        _require_no_code(leaf.name, leaf.config)
    what, alternative = f"the data of task '{name}'", "leave it out of eval.tasks"

    def load() -> Any:
        _seed()
        return manager.load([name])

    with _one_line(f"eval.tasks: '{name}'"):
        if all(_is_local(leaf.config) for leaf in leaves):
            return load()
        check_reachable(what, alternative)
        return watched(what, load, alternative)


def _require_own_data(leaf: _Leaf) -> None:
    """Refuse functions that make data, data of a user's file for lm_eval's functions, and strays.

    Functions that make data load tokenizers with the code beside them, those of lm_eval's tasks
    trust what a document says, and a file may not have the working folder read.

    Raises:
        InteropError: Naming the key.
    """
    if any(config.get("custom_dataset") for config, _ in leaf.layers):
        raise InteropError(
            f"eval.tasks: the data of '{leaf.name}' is made by a function (custom_dataset), which "
            "may run code of the Hub; leave it out, or run it with lm_eval itself"
        )
    is_task_of_harness = any(config.keys() - {"task"} for config, origin in leaf.layers if origin)
    for config, origin in leaf.layers:
        if is_task_of_harness and not origin and (changed := config.keys() & set(DATASET_KEYS)):
            raise InteropError(
                f"eval.task_folder: {min(changed)} of '{leaf.name}', a task of lm_eval's, is "
                "changed: its functions are made for its own data only; give the task a name and "
                "a file of its own"
            )
    path = leaf.config.get("dataset_path")
    # datasets would read the working folder then, or what in it has that name.
    if path in LOCAL_BUILDERS and not (leaf.config.get("dataset_kwargs") or {}).get("data_files"):
        raise InteropError(
            f"eval.tasks: the data of '{leaf.name}' (dataset_path: {path}) needs "
            "dataset_kwargs.data_files"
        )
    if isinstance(path, str) and path not in LOCAL_BUILDERS and Path(path).exists():
        raise InteropError(
            f"eval.tasks: the data of '{leaf.name}' is {path} on the Hub, and here is a folder or "
            "file of that name, which would be read in its place; start from another folder"
        )


def _require_no_code(task: str, config: Mapping[str, Any]) -> None:
    """Refuse what would run the model's answers, or a metric from the Hub.

    Raises:
        InteropError: Naming the key.
    """
    import lm_eval.api.metrics  # registers them
    import lm_eval.api.registry

    known = lm_eval.api.registry.metric_registry
    package = str(_package())
    if config.get("unsafe_code"):
        raise InteropError(
            f"eval.tasks: '{task}' runs what the model writes (unsafe_code), which is not done"
        )
    for metric in config.get("metric_list") or []:
        name = metric.get("metric")
        # What the package computes itself, by functions of its own.
        is_computed = config.get("process_results") is not None or str(name).startswith(package)
        if not is_computed and (metric.get("hf_evaluate") or name not in known):
            raise InteropError(
                f"eval.tasks: '{task}' takes its metric {name} from the Hub, where metrics are "
                f"code, which is never run; there are: {', '.join(sorted(known))}"
            )


def _is_local(config: Mapping[str, Any]) -> bool:
    """Tell whether a task's documents are on this machine; an address may be among the files."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    is_file = config.get("dataset_path") in LOCAL_BUILDERS and bool(files)
    return is_file and "://" not in str(files)


def _sandbox_templates() -> None:
    """Have lm_eval render every template in jinja's sandbox.

    A plain environment lets a template reach any class, and through it any function.
    """
    import lm_eval.utils
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= {"regex_replace": lm_eval.utils.regex_replace}
    lm_eval.utils.env = sandbox


def _seed() -> None:
    """Start the global generators as lm_eval does: some tasks shuffle their answers."""
    random.seed(_SEEDS["random"])
    np.random.seed(_SEEDS["numpy"])  # noqa: NPY002


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep lm_eval's progress, warnings and processes to itself, and code of the Hub out."""
    logger = logging.getLogger("lm_eval")
    modules: dict[str, Any] = sys.modules
    level, alone = logger.level, os.environ.get(_ALONE)
    evaluate = {name: modules[name] for name in ("evaluate",) if name in modules}
    logger.setLevel(logging.CRITICAL)
    # Functions of lm_eval's tasks would load metrics with it: importing it is an error now.
    modules["evaluate"] = None
    # A bootstrap would start a process for each core.
    os.environ[_ALONE] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        del modules["evaluate"], os.environ[_ALONE]
        modules |= evaluate
        if alone is not None:
            os.environ[_ALONE] = alone


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Say what a task's file or data got wrong in one line.

    A RuntimeError is PyTorch's: it may be out of memory, and is no task's fault.

    Raises:
        InteropError: For any other error.
    """
    from data.errors import DataError
    from data.hub import explain

    try:
        yield
    except (DataError, InteropError, ModelConfigError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "scripts are no longer supported" in text:
            text = "its dataset is a script, and code of a dataset is never run"
        elif isinstance(error, ImportError) and "evaluate" in text:
            text = "it takes a metric from the Hub, where metrics are code, which is never run"
        elif type(error) is RuntimeError or type(error).__module__.startswith("torch"):
            raise
        else:
            text = explain(error)
        raise InteropError(f"{what}: {text}") from error


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
