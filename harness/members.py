"""What tasks a name or a group stands for, as lm_eval puts them together, and what is refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import TaskError
from harness.task_files import DATASET_KEYS, LOCAL_BUILDERS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def names_of(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of tasks, groups and tags that task files define."""
    found = set()
    for config in configs:
        tags = config.get("tag") or []
        found |= {config.get("group") or config["task"]}
        found |= set(tags if isinstance(tags, list) else [tags])
    return found


def referred(group: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a group's configuration refers to."""
    members = group.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield member
        elif "group" in member:
            yield member["group"]
            yield from referred(member)
        else:
            yield str(member.get("task"))


class Leaf(NamedTuple):
    """A task that will be asked, as lm_eval will put it together.

    Functions are the names of lm_eval's, for nothing is imported yet.

    Attributes:
        name: The task's.
        layers: Configurations, later ones win, and whether lm_eval brings them.
    """

    name: str
    layers: list[tuple[Mapping[str, Any], bool]]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the layers make together."""
        return {key: value for config, _ in self.layers for key, value in config.items()}


def leaves_of(
    member: str | Mapping[str, Any],
    manager: "TaskManager",
    is_of_harness: bool = True,
    changes: Sequence[tuple[Mapping[str, Any], bool]] = (),
    above: frozenset[str] = frozenset(),
) -> Iterator[Leaf]:
    """Yield the tasks behind a name, or a group's member.

    Args:
        member: The name, or what the group says of a member.
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
        yield Leaf(name, layers)
    elif name not in above:
        passed = [(_for_members(config), origin) for config, origin in layers]
        for inner in members:
            yield from leaves_of(inner, manager, is_of_harness, passed, above | {name})


def _for_members(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lm_eval hands on to a group's members: all but the group's own keys."""
    from lm_eval.config.group import GroupConfig

    of_groups = {field.name for field in fields(GroupConfig)}
    return {key: value for key, value in group.items() if key not in of_groups}


def _package() -> Path:
    """Return where lm_eval is."""
    import lm_eval

    return Path(lm_eval.__file__).parent


def require_own_data(leaf: Leaf) -> None:
    """Refuse functions that make data, data of a user's file for lm_eval's functions, and strays.

    Functions that make data load tokenizers with code from their folder, those of lm_eval's tasks
    trust what a document says, and a file may not have the working folder read.

    Raises:
        TaskError: Naming the key.
    """
    if any(config.get("custom_dataset") for config, _ in leaf.layers):
        raise TaskError(
            f"eval.tasks: the data of '{leaf.name}' is made by a function (custom_dataset), which "
            "may run code of the Hub; leave it out, or run it with lm_eval itself"
        )
    is_task_of_harness = any(config.keys() - {"task"} for config, origin in leaf.layers if origin)
    for config, origin in leaf.layers:
        if is_task_of_harness and not origin and (changed := config.keys() & set(DATASET_KEYS)):
            raise TaskError(
                f"eval.task_folder: {min(changed)} of '{leaf.name}', a task of lm_eval's, is "
                "changed: its functions are made for its own data only; give the task a name and "
                "a file of its own"
            )
    path = leaf.config.get("dataset_path")
    # datasets would read the working folder then, or what in it has that name.
    if path in LOCAL_BUILDERS and not (leaf.config.get("dataset_kwargs") or {}).get("data_files"):
        raise TaskError(
            f"eval.tasks: the data of '{leaf.name}' (dataset_path: {path}) needs "
            "dataset_kwargs.data_files"
        )
    if isinstance(path, str) and path not in LOCAL_BUILDERS and Path(path).exists():
        raise TaskError(
            f"eval.tasks: the data of '{leaf.name}' is {path} on the Hub, and here is a folder or "
            "file of that name, which would be read in its place; start from another folder"
        )


def require_no_code(task: str, config: Mapping[str, Any]) -> None:
    """Refuse what would run the model's answers, or a metric from the Hub.

    Raises:
        TaskError: Naming the key.
    """
    import lm_eval.api.metrics  # registers them
    import lm_eval.api.registry

    known = lm_eval.api.registry.metric_registry
    package = str(_package())
    if config.get("unsafe_code"):
        raise TaskError(
            f"eval.tasks: '{task}' runs what the model writes (unsafe_code), which is not done"
        )
    for metric in config.get("metric_list") or []:
        name = metric.get("metric")
        # What the package computes itself, by functions of its own.
        is_computed = config.get("process_results") is not None or str(name).startswith(package)
        if not is_computed and (metric.get("hf_evaluate") or name not in known):
            raise TaskError(
                f"eval.tasks: '{task}' takes its metric {name} from the Hub, where metrics are "
                f"code, which is never run; there are: {', '.join(sorted(known))}"
            )


def is_local(config: Mapping[str, Any]) -> bool:
    """Return whether a task's documents are on this machine; an address may be among the files."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    is_file = config.get("dataset_path") in LOCAL_BUILDERS and bool(files)
    return is_file and "://" not in str(files)
