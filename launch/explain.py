"""What Hydra or OmegaConf refused, in one line that a user can act on."""

import dataclasses
import difflib
import re
from typing import cast

from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from yaml import YAMLError

import run_config


def explain(error: BaseException, schema: type) -> str:
    """Say in one line what Hydra or OmegaConf refused, with the nearest valid key.

    Args:
        error: What was raised while a configuration was composed or checked.
        schema: Of the entry point, which has the valid keys.
    """
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(str(cause) for cause in causes)
    override = re.search(r"Could not override '([^']+)'", text)
    full_key = re.search(r"full_key: (\S+)", text)
    key = override.group(1) if override else full_key.group(1) if full_key else ""
    if override or any(isinstance(c, ConfigKeyError | ConfigAttributeError) for c in causes):
        return f"there is no key '{key}'; {_nearest(key, schema)}"
    if "raised while composing config" in text and "Key '" in text:
        return f"{text.split(':', 1)[0]}: there is no key '{key}'; {_nearest(key, schema)}"
    if division := re.search(r"ValueError raised while resolving interpolation: (.*)", text):
        return f"{key} cannot be worked out: {division.group(1)}; set {key}"
    if "hydra/launcher/submitit" in text:
        return "this launcher is a package of its own; run: pip install hydra-submitit-launcher"
    if "Available options" in text:
        return " ".join(text.split("Config search path")[0].split())
    if isinstance(causes[-1], YAMLError):  # says in its last lines where
        return " ".join(text.split())
    if section := re.search(r"is not a subclass of (\w+)\. value: (.*)", text):
        names = [entry.name for entry in dataclasses.fields(schema)]
        types = [getattr(entry.type, "__name__", "") for entry in dataclasses.fields(schema)]
        name = names[types.index(section.group(1))] if section.group(1) in types else key
        return f"{name}: {section.group(2)} is no section of keys, such as {name}.KEY=..."
    composing = re.search(r"In '(.+)': \w+ raised while composing config:\n(.*)", text)
    in_file = f" (in conf/{composing.group(1)}.yaml or one of that name)" if composing else ""
    reason = composing.group(2) if composing else str(causes[-1]).splitlines()[0]
    if "is not Optional" in reason or "Incompatible value 'None'" in reason:
        reason = "null is not allowed"
    merging = re.search(r"Error merging override (.*)", text)
    reason = re.sub(r"\b(List|Dict)Config\b", lambda kind: kind.group(1).lower(), reason)
    where = key or (merging.group(1) if merging else "")
    reason = f"{reason.strip() or type(error).__name__}{in_file}"
    return f"{where}: {reason}" if where else reason


def _nearest(key: str, schema: type) -> str:
    """Suggest the valid key that looks most like an unknown one, or list its neighbours."""
    parent, _, leaf = key.rpartition(".")
    groups = (
        []
        if parent
        else [path.name for path in (run_config.ROOT / "conf").iterdir() if path.is_dir()]
    )
    known = groups + _keys(schema)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near and parent:  # the right name under the wrong parent
        near = [k for k in known if "." in k and k.rpartition(".")[2] == leaf][:1]
    if near:
        return f"did you mean '{near[0]}'?"
    siblings = [k.rpartition(".")[2] for k in known if parent and k.rpartition(".")[0] == parent]
    return f"{parent} has {', '.join(siblings)}" if siblings else "see --help for those there are"


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Return every key of a schema, dotted."""
    keys: list[str] = []
    for entry in dataclasses.fields(schema):
        name = f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(entry.type):
            keys += _keys(cast(type, entry.type), f"{name}.")
        else:
            keys.append(name)
    return keys
