"""Task files of lm-evaluation-harness from anybody: plain values, refused where they bring code.

lm_eval's own loader imports the Python that a file names (`!function`, `class`), and what it builds
fetches metrics from the Hub and runs them. So it never sees these files: what was read and checked
here is written, as plain values, to a folder of copies.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from files.regular_file import read_regular_file
from harness.errors import TaskError
from settings.data import is_hub_name

LOCAL_BUILDERS = ("json", "csv", "parquet", "text")
"""Kinds of files that a task may have its documents in, by `dataset_path`."""
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20

_DOCUMENT = {
    *("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix"),
    *("fewshot_delimiter", "target_delimiter"),
}
_TASK = _DOCUMENT | {
    *("task", "task_alias", "tag", "include", "metadata", "description", "output_type"),
    *("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split"),
    *("test_split", "fewshot_split", "fewshot_config", "num_fewshot", "repeats", "metric_list"),
    *("generation_kwargs", "filter_list", "should_decontaminate", "doc_to_decontamination_query"),
}
_GROUP = {"group", "group_alias", "aggregate_metric_list"}
_FEWSHOT = _DOCUMENT | {"sampler", "split", "samples", "fewshot_indices"}
DATASET_KEYS = ("dataset_path", "dataset_name", "dataset_kwargs")
"""Where a task has its documents from."""
_BELOW = {
    # lm_eval hands them, as arguments, to what makes a task's data.
    "metadata": {"version"},
    "fewshot_config": _FEWSHOT,
    "dataset_kwargs": {"data_files", "field", "delimiter", "column_names", "revision"},
}
# What only a function, a class, another file or a program can be given for.
_CODE = {
    *("class", "custom_dataset", "process_docs", "process_results", "use_prompt"),
    *("unsafe_code", "hf_evaluate", "filter_fn", "trust_remote_code"),
}
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}


class _Metadata(msgspec.Struct):
    version: str | int | float | None = None


class _Filters(msgspec.Struct):
    filter: list[dict[str, Any]] | None = None


class _Shape(msgspec.Struct):
    """What a task file says in lists and mappings; all else is lm_eval's to read."""

    task: str | list[str | dict[str, Any]] | None = None
    metadata: _Metadata | None = None
    fewshot_config: dict[str, Any] | None = None
    dataset_kwargs: dict[str, Any] | None = None
    metric_list: list[dict[str, Any]] | None = None
    filter_list: list[_Filters] | None = None


def read_task_files(folder: Path) -> list[dict[str, Any]]:
    """Read the tasks and groups of a folder's *.yaml, includes put in.

    Args:
        folder: Searched with the folders below it.

    Raises:
        TaskError: If a file cannot be read, is not plain YAML, brings code or has a key that a
            task file must not have: naming the file and the key.
    """
    if not folder.is_dir():
        raise TaskError(f"eval.task_folder: no such folder: {folder}")
    folder = folder.resolve()
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _File(path, folder).with_includes(set())
        name = config.get("group") or config.get("task")
        if name is None:  # for others to include
            continue
        where = path.relative_to(folder).as_posix()
        if not isinstance(name, str):
            raise TaskError(f"eval.task_folder: {where}: its task or group must be a name")
        if name in found:
            raise TaskError(
                f"eval.task_folder: {where} and {found[name][0]} both hold '{name}'; rename one"
            )
        found[name] = where, config
    if not found:
        raise TaskError(f"eval.task_folder: there is no *.yaml with a task in {folder}")
    return [config for _, config in found.values()]


def write_copies(configs: list[dict[str, Any]], folder: Path) -> None:
    """Write what was read, for lm_eval to load."""
    import yaml

    for number, config in enumerate(configs):
        text = yaml.safe_dump(config, allow_unicode=True)
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")


class _File:
    """One YAML file, read and checked.

    Args:
        path: The file.
        folder: What it must be in.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._where = f"eval.task_folder: {path.relative_to(folder).as_posix()}"
        try:
            text = read_regular_file(path, _MAX_BYTES).decode()
        except OSError as error:
            raise self._refusal(f"it cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self._refusal("it is not UTF-8") from error
        config = self._parsed(text)
        if not isinstance(config, dict):
            raise self._refusal("it holds no keys")
        self._check(config)
        self._config: dict[str, Any] = config

    def with_includes(self, seen: set[Path]) -> dict[str, Any]:
        """Return the configuration with what it includes; its own keys win, as in lm_eval.

        Args:
            seen: The files that are included already; this one joins them.
        """
        if self._path in seen:
            raise self._refusal("include: it is included twice")
        seen.add(self._path)
        merged: dict[str, Any] = {}
        includes = self._config.pop("include", None) or []
        for name in includes if isinstance(includes, list) else [includes]:
            path = self._inside(name)
            if path is None:
                raise self._refusal(f"include: {name} is no file of the folder")
            merged |= _File(path, self._folder).with_includes(seen)
        return merged | self._config

    def _inside(self, name: Any) -> Path | None:
        """Return a file of the folder, given relative to this one; None if it is not in there."""
        if not isinstance(name, str) or "\0" in name:
            return None
        # `Path.resolve` raises where a link leads to itself.
        path = Path(os.path.realpath(self._path.parent / name))
        return path if path.is_relative_to(self._folder) else None

    def _refusal(self, reason: str) -> TaskError:
        return TaskError(f"{self._where}: {reason}")

    def _code(self, key: str) -> TaskError:
        return self._refusal(
            f"{key}: it brings or fetches code, and code of a task file is never run; write the "
            "task with templates and lm_eval's own metrics and filters"
        )

    def _parsed(self, text: str) -> Any:
        import yaml

        try:
            self._require_short(yaml.parse(text, Loader=yaml.SafeLoader))
            for key, node in _nodes(yaml.compose(text, Loader=yaml.SafeLoader), ""):
                if node.tag not in _PLAIN_TAGS:
                    raise self._code(f"{key or 'its root'} ({node.tag})")
                str(node.value).encode()  # an escape may stand for half a letter
            return yaml.safe_load(text)
        except TaskError:
            raise
        # A date that does not exist is a ValueError.
        except (yaml.YAMLError, ValueError) as error:
            raise self._refusal(f"it is not YAML ({' '.join(str(error).split())})") from error

    def _require_short(self, events: Iterator[Any]) -> None:
        """Refuse what makes a short file long, before anything is built from it."""
        import yaml

        depth = 0
        for event in events:
            if isinstance(event, yaml.AliasEvent):
                where = event.start_mark.line + 1
                raise self._refusal(f"line {where} holds an alias; write it out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise self._refusal(f"it is nested more than {_MAX_DEPTH} deep")

    def _check(self, config: Mapping[Any, Any]) -> None:
        """Check a task, a group or a member of one, and make its data files absolute."""
        self._require_keys(config, _TASK | _GROUP, "")
        try:
            shape = msgspec.convert({**config}, _Shape, strict=True)
        except msgspec.ValidationError as error:
            raise self._refusal(str(error).replace("`", "")) from error
        for member in config["task"] if isinstance(shape.task, list) else []:
            if isinstance(member, dict):
                self._check(member)
                member = member.get("group") or member.get("task")
            if not isinstance(member, str):
                raise self._refusal("task: a group's members are names, or have a task or group")
        for key, known in _BELOW.items():
            self._require_keys(config.get(key) or {}, known, f"{key}.")
        self._check_dataset(config)
        for metric in shape.metric_list or []:
            self._require_no_code(metric, "metric_list.")
        for filters in shape.filter_list or []:
            for step in filters.filter or []:
                self._require_no_code(step, "filter_list.filter.")
                if step.get("function") == "custom":
                    raise self._code("filter_list.filter.function (custom)")

    def _check_dataset(self, config: Mapping[Any, Any]) -> None:
        path = config.get("dataset_path")
        is_local = path is None or path in LOCAL_BUILDERS
        if not is_local and not (isinstance(path, str) and is_hub_name(path)):
            raise self._refusal(
                f"dataset_path ({path}) must be a name on the Hub, or one of "
                f"{', '.join(LOCAL_BUILDERS)} with dataset_kwargs.data_files"
            )
        options = config.get("dataset_kwargs") or {}
        files = options.get("data_files")
        if isinstance(files, dict):
            options["data_files"] = {split: self._local(some) for split, some in files.items()}
        elif files is not None:
            options["data_files"] = self._local(files)
        if files is not None and not is_local:
            raise self._refusal(
                f"dataset_kwargs.data_files needs a dataset_path among {', '.join(LOCAL_BUILDERS)}"
            )

    def _local(self, files: Any) -> list[str]:
        """Return data files as absolute paths in the folder, given relative to the task file."""
        found = []
        for name in files if isinstance(files, list) else [files]:
            # "://" and "::" are addresses and chains of fsspec, which datasets would follow.
            if not isinstance(name, str) or "://" in name or "::" in name or "\0" in name:
                raise self._refusal(
                    f"dataset_kwargs.data_files ({name}) must be files on this machine"
                )
            path = self._inside(name)
            if path is None:
                raise self._refusal(f"dataset_kwargs.data_files: {name} is no file of the folder")
            if not path.is_file():
                raise self._refusal(f"dataset_kwargs.data_files: no such file: {path}")
            found.append(str(path))
        return found

    def _require_keys(self, config: Mapping[Any, Any], known: set[str], prefix: str) -> None:
        self._require_no_code(config, prefix)
        for key in config:
            if key not in known | _CODE:
                raise self._refusal(f"{prefix}{key}: a task file may not have this key")

    def _require_no_code(self, config: Mapping[Any, Any], prefix: str) -> None:
        for key, value in config.items():
            if key in _CODE and value not in (None, False):
                raise self._code(f"{prefix}{key}")


def _nodes(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every node, and the dotted key that it is at."""
    import yaml

    if node is None:  # an empty file
        return
    yield key, node
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _nodes(name, key)
            yield from _nodes(value, f"{key}.{name.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item, key)
