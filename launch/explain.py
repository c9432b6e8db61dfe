"""What Hydra or OmegaConf refused, in one line that a user can act on."""

import dataclasses
import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from yaml import YAMLError

from launch import schemas
from launch.keys import groups_of, keys_of
from launch.mistakes import attentions_with, unknown_key, wrong_choice
from launch.values import not_divisible, not_of_type

# Where the keys of a file in conf/GROUP/ go, if its first line says so.
_PACKAGES = {
    "attention": "model.attention",
    "block": "model",
    "debug": "_global_",
    "experiment": "_global_",
}


def explain(error: BaseException, schema: type, typed: Sequence[str] = ()) -> str:
    """Say in one line what Hydra or OmegaConf refused, with the nearest valid key.

    Args:
        error: What was raised while a configuration was composed or checked.
        schema: Of the entry point, which has the valid keys.
        typed: The command line.
    """
    entry = next(name for name, one in schemas.SCHEMAS.items() if one is schema)
    if isinstance(error, OverrideParseException):
        key = error.override.lstrip("+~").partition("=")[0]
        return f"{key} cannot be read; quote it: KEY='\"VALUE\"'"
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(str(cause) for cause in causes)
    text = re.sub(r"\blocal/\w+_settings\b", "local/default", text)
    if of_defaults := _of_defaults(entry, text):
        return of_defaults
    override = re.search(r"Could not override '([^']+)'", text)
    full_key = re.search(r"full_key: (\S+)", text)
    key = override.group(1) if override else full_key.group(1) if full_key else ""
    in_file = re.search(r"In '(.+)': \w+ raised while composing config:\n(.*)", text)
    if override or any(isinstance(c, ConfigKeyError | ConfigAttributeError) for c in causes):
        return _unknown(entry, key, in_file.group(1) if in_file else "", typed)
    if in_file and "Key '" in text:
        return f"{text.split(':', 1)[0]}: {_unknown(entry, key, in_file.group(1), typed)}"
    if division := re.search(r"ValueError raised while resolving interpolation: (.*)", text):
        return not_divisible(key, division.group(1), typed)
    if isinstance(error, MissingConfigException):
        return _not_there(entry, error)
    if "No match in the defaults list" in text:
        return " ".join(text.splitlines()[0].split())
    if isinstance(causes[-1], YAMLError):  # says in its last lines where
        return " ".join(text.split())
    if section := re.search(r"is not a subclass of (\w+)\. value: (.*)", text):
        names = [one.name for one in dataclasses.fields(schema)]
        types = [getattr(one.type, "__name__", "") for one in dataclasses.fields(schema)]
        name = names[types.index(section.group(1))] if section.group(1) in types else key
        return f"{name}: {section.group(2)} is no section of keys, such as {name}.KEY=..."
    where = f" (in conf/{in_file.group(1)}.yaml or one of that name)" if in_file else ""
    reason = in_file.group(2) if in_file else (str(causes[-1]).splitlines() or [""])[0]
    merging = re.search(r"Error merging override (.*)", text)
    key = key or (merging.group(1).partition("=")[0] if merging else "")
    said = not_of_type(entry, key, reason or type(error).__name__, is_typed=not in_file)
    return f"{said}{where}"


def _not_there(entry: str, error: MissingConfigException) -> str:
    """Say which choices there are, or which file there is not."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group == "hydra/launcher" and name.startswith("submitit"):
        return "this launcher is a package of its own; run: pip install hydra-submitit-launcher"
    if error.options is None:
        return f"conf/{error.missing_cfg_file}.yaml is not there"
    return wrong_choice(entry, group, name, error.options)


def _of_defaults(entry: str, text: str) -> str:
    """Say what is wrong with the defaults list of a file in conf/; '' if that is not it."""
    file = found[1] if (found := re.search(r"In '([^']+)'", text)) else ""
    group = ""
    if found := re.search(r"Could not override '(\w+)@(\w+)\.\1'", text):
        if found[2] in _PACKAGES and file.startswith(f"{found[2]}/"):
            return _lacks_its_package(file)
    elif found := re.search(r"Multiple values for (\w+)\. To override .*: ([^']*)'", text):
        group, name = found.groups()
        return f"the defaults of a file choose {group} again: write - override /{group}: {name}"
    elif found := re.search(r"Could not find '\w+/(\w+)/([^']+)'", text):
        group, name = found[1], found[2]
    elif found := re.search(r"Could not override '\w+/(\w+)@[\w.]+'", text):
        group, name = found[1], "NAME"
    return (
        f"conf/{file}.yaml: write - override /{group}: {name}" if group in groups_of(entry) else ""
    )


def _unknown(entry: str, key: str, file: str, typed: Sequence[str]) -> str:
    """Say what is wrong with a key that the schema does not have."""
    first = key.partition(".")[0]
    if first in _PACKAGES and first in groups_of(entry) and first not in keys_of(entry):
        name = file if file.startswith(f"{first}/") else f"{first}/{_chosen(first, typed)}"
        return _lacks_its_package(name)
    leaf = key.rpartition(".")[2]
    if key == f"model.attention.{leaf}" and (have := attentions_with(leaf)):
        return f"there is no key '{key}' with this attention; {have}"
    return unknown_key(entry, key)


def _lacks_its_package(file: str) -> str:
    group = file.partition("/")[0]
    return (
        f"conf/{file}.yaml lacks its first line, # @package {_PACKAGES[group]}, without which its "
        f"keys go below {group}"
    )


def _chosen(group: str, typed: Sequence[str]) -> str:
    found = [one.partition("=")[2] for one in typed if one.startswith(f"{group}=")]
    return found[-1].strip("'\"") if found else "NAME"
