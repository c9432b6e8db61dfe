"""The attentions by name, and their configurations from what a file or a command line says."""

import dataclasses
import difflib
import importlib
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from modeling.attention.base import AttentionConfig
from modeling.errors import ModelConfigError

ConfigClass = TypeVar("ConfigClass", bound=type[AttentionConfig])

_REGISTRY: dict[str, type[AttentionConfig]] = {}


def register_attention(*names: str) -> Callable[[ConfigClass], ConfigClass]:
    """Make a configuration class known under one or more names, as `attention=<name>`."""

    def register(config_class: ConfigClass) -> ConfigClass:
        for name in names:
            if name in _REGISTRY:
                raise KeyError(f"attention '{name}' is registered twice")
            _REGISTRY[name] = config_class
        return config_class

    return register


def attention_config_class(name: str) -> type[AttentionConfig]:
    """Look up the configuration class of a registered name.

    Raises:
        ModelConfigError: If there is none; the message lists those there are. If a module cannot
            be imported.
    """
    known = attention_names()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ModelConfigError(
            f"there is no attention '{name}'; {hint}available: {', '.join(known)}"
        )
    return _REGISTRY[name]


def attention_names() -> list[str]:
    """Return every registered name, sorted.

    Raises:
        ModelConfigError: If a module of this package cannot be imported.
    """
    # Every module of this package is imported, so that adding one is all a new variant takes.
    package = importlib.import_module("modeling.attention")
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"modeling.attention.{module.name}")
        except Exception as error:  # a module of the user's own, with a mistake in it
            raise ModelConfigError(_not_imported(module.name, error)) from error
    return sorted(_REGISTRY)


def _not_imported(module: str, error: Exception) -> str:
    """Say where a module stops being Python that runs."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).stem == module:
            line = frame.lineno
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    where = f", line {line}" if line else ""
    return f"modeling/attention/{module}.py{where}: {type(error).__name__}: {said}"


def attention_config(fields: Mapping[str, Any]) -> AttentionConfig:
    """Build the configuration that `fields` describe.

    Args:
        fields: `name`, a registered name, and the fields of its configuration class.

    Raises:
        ModelConfigError: For an unknown name or field, a missing field, or impossible values.
    """
    values = dict(fields)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ModelConfigError("model.attention.name is not set; choose one with attention=mha")
    config_class = attention_config_class(name)
    fields_of = dataclasses.fields(config_class)
    known = {field.name: field for field in fields_of if field.name not in config_class.PLACED}
    types = get_type_hints(config_class)
    problems = []
    for key in values.keys() & config_class.PLACED:
        problems.append(
            f"model.attention.{key} is set layer by layer, by the arrangement; use layers=window, "
            "window_full or shared_pairs"
        )
    for key in values.keys() - known.keys() - config_class.PLACED:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(known)}"
        problems.append(f"attention '{name}' has no key model.attention.{key}; {hint}")
    for key, field in known.items():
        if key not in values and field.default is dataclasses.MISSING:
            problems.append(f"attention '{name}' needs model.attention.{key}")
    for key in values.keys() & known.keys():
        problem = _type_problem(key, values[key], types[key])
        problems += [problem] if problem else []
    if problems:
        raise ModelConfigError(sorted(problems))
    config = config_class(**values)
    problems = config.problems_as(name)
    if problems:
        raise ModelConfigError(problems)
    return config


def _type_problem(key: str, value: Any, annotation: Any) -> str | None:
    """Return why a value from YAML, JSON or the command line is not of the field's type."""
    accepted = float | int if annotation is float else annotation
    # bool is a subclass of int, but `true` is no number of heads.
    if isinstance(value, accepted) and (annotation is bool or not isinstance(value, bool)):
        return None
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    kinds = str(getattr(annotation, "__name__", annotation)).split(" | ")
    wanted = " or ".join(names.get(kind, "null") for kind in kinds)
    return f"{key} ({value!r}) must be {wanted}; set model.attention.{key}"
