"""The YAML files and what a user types, composed by Hydra and checked against a schema."""

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch import schemas
from launch.errors import ConfigError
from launch.explain import explain
from launch.keys import choices, with_home
from launch.local import local_settings
from launch.schemas import Config
from modeling.config import arrangement_label
from tracking.configuration import flat

# What composing raises; `explain` says each in one line.
COMPOSING_FAILED = (
    *(HydraException, OmegaConfBaseException, YAMLError),
    *(ValueError, OSError, RecursionError),
)
# Of a run's name, the part that comes from a folder.
_LONGEST_NAME = 60
# Bytes that are not UTF-8 arrive from the command line as lone surrogates.
_CAN_BE_WRITTEN = re.compile(r"[^\0\ud800-\udfff]*")
# Where things are, and whose: a cluster's conf/local may need them.
_HARMLESS_VARIABLE = re.compile(r"HOME|USER|LOGNAME|SCRATCH|TMPDIR|SLURM_JOB_ID|SLURM_TMPDIR")


def register(config_name: str) -> None:
    """Make an entry point's schema and the YAML arithmetic known to Hydra; may be called again.

    Raises:
        ConfigError: If conf/local/default.yaml is wrong.
    """
    store = ConfigStore.instance()
    node = OmegaConf.structured(schemas.SCHEMAS[config_name])
    if config_name == "train":  # of an experiment, not of one of its runs
        with open_dict(node):
            node.arms = node.sweep = None
    store.store(name=f"{config_name}_schema", node=node)
    # Hydra would give all of the file to each entry point, and refuse what one does not have.
    own = {name: local_settings(name) for name in schemas.SCHEMAS}[config_name]
    store.store(group="local", name=f"{config_name}_settings", node=own, package="_global_")
    resolvers: dict[str, Callable[..., Any]] = {
        "oc.env": _root_folder,
        "divide": _divide,
        "arranged": _arranged,
        "name_or": _name_or,
        "corpus": _corpus,
        "multiply": lambda a, b: a * b,
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def _divide(numerator: int, denominator: int) -> int:
    """Divide for YAML's `${divide:a,b}`, refusing a remainder."""
    if denominator < 1 or numerator % denominator:
        raise ValueError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def _arranged(layers: DictConfig) -> str:
    """Name an arrangement in a run's name by YAML's `${arranged:${layers}}`; '' if uniform."""
    label = arrangement_label(layers)
    return f"-{label}" if label else ""


def _name_or(folder: str | None, otherwise: str) -> str:
    """Name a run in YAML's `${name_or:folder,otherwise}` after a folder, if there is one."""
    return otherwise if folder is None else _as_name(folder) or otherwise


def _corpus(data: DictConfig) -> str:
    """Name a corpus in YAML's `${corpus:${data}}`, with its folder where any folder can be it."""
    name = str(data.name)
    folders = [] if name != data.source else _folders(data)
    found = [re.sub(r"[=,+-]+", "-", _as_name(folder)).strip("-") for folder in folders]
    return "-".join([name, *filter(None, found)])


def _folders(data: DictConfig) -> list[str]:
    """Return what tells a corpus from others of its kind, those of a mixture in its order."""
    if data.source == "mixture":
        return [folder for corpus in data.corpora.values() for folder in _folders(corpus)]
    if OmegaConf.is_missing(data, "path") or not data.path:
        return []
    if data.source == "hub":
        of_hub = [str(data.path).replace("/", "-"), data.config_name]
        return [name for name in of_hub if name]
    return [str(data.path)] if data.source == "local" else []


def _as_name(folder: str) -> str:
    """Return what a folder is called in the characters that the name of a run may have."""
    name = Path(with_home(folder)).resolve().name
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(one for one in plain if not unicodedata.combining(one))
    plain = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", plain).strip("-.")[:_LONGEST_NAME]
    if plain or not name:
        return plain
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]


def _root_folder(name: str, default: str | None = None) -> str:
    """Stand in for `${oc.env:...}`, which would let a file put a key into what is written."""
    if _HARMLESS_VARIABLE.fullmatch(name):
        return os.environ.get(name, default or "")
    if name != "PROJECT_ROOT":
        raise ValueError(
            f"a configuration cannot read the environment variable {name}, whose value would be "
            "written to config.yaml and reports; write the value itself"
        )
    return str(schemas.ROOT)


def require_sound(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would without saying of what key.

    Args:
        arguments: Of the command line.

    Raises:
        ConfigError: Naming the key.
    """
    for argument in arguments:
        if not _CAN_BE_WRITTEN.fullmatch(argument):
            key, _, value = argument.partition("=")
            raise _no_text(key, value.strip("'"))


def composed(config_name: str, overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose an entry point's configuration: the YAML files, then the overrides.

    Args:
        config_name: Of the entry point, or of another file in conf/.
        overrides: Of the command line, as `for_hydra` returns them.
        with_hydra: Whether Hydra's own settings and an experiment's arms and sweep are wanted, too.
    """
    if config_name in schemas.SCHEMAS:
        register(config_name)
    with files():
        config = hydra.compose(config_name, overrides, return_hydra_config=True)
    if not with_hydra:
        with open_dict(config):
            for key in ("hydra", "arms", "sweep"):
                config.pop(key, None)
    return config


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar, each of which may be a sweep of several values.

    Args:
        overrides: Of the command line, as `for_hydra` returns them.
    """
    with files():
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        return parser.parse_overrides(list(overrides))


def files() -> contextlib.AbstractContextManager[None]:
    """Have Hydra read the files in conf/ while the context is entered."""
    return hydra.initialize_config_dir(str(schemas.ROOT / "conf"), version_base="1.3")


def checked(config: DictConfig, schema: type[Config], typed: Sequence[str] = ()) -> Config:
    """Turn a composed configuration into its dataclass.

    Args:
        config: What `composed` returned, or Hydra gave a job.
        schema: Of the entry point.
        typed: The command line.

    Raises:
        ConfigError: Naming every key that is unknown, missing or out of its range.
    """
    try:
        if schema is schemas.TrainConfig:
            config = _with_attentions(config, typed)
        # Hydra lets `+key=value` add anything; a fresh schema does not.
        resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        _require_text(resolved)
        fresh = OmegaConf.merge(OmegaConf.structured(schema), _literal(resolved))
        missing = sorted(OmegaConf.missing_keys(fresh))
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given: {missing[0]}=...")
        filled: Config = cast(Any, OmegaConf.to_object(fresh))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema, typed)) from error
    sections: list[Any] = [filled]
    sections += [value for value in vars(filled).values() if dataclasses.is_dataclass(value)]
    problems = [problem for section in sections for problem in section.problems()]
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return filled


def _with_attentions(config: DictConfig, typed: Sequence[str]) -> DictConfig:
    """Return a configuration with each attention that layers.pattern names, as in its file.

    Raises:
        ConfigError: If there is none of a name.
    """
    pattern = OmegaConf.select(config, "layers.pattern") or []
    names = [str(name) for name in dict.fromkeys(pattern) if name != "own"]
    set_here = OmegaConf.select(config, "layers.attentions") or {}
    if unused := sorted(set(set_here) - set(names)):
        raise ConfigError(
            f"layers.attentions.{unused[0]} is in no layer; layers.pattern must name it: "
            f"layers.pattern=[{unused[0]},own]"
        )
    if not names:
        return config
    config = copy.deepcopy(config)
    folders = [one for one in typed if one.startswith("hydra.searchpath=")]
    for name in names:
        own = set_here.get(name, {})
        choice = str(own.get("name", name))
        if choice in choices("attention") or folders:
            # `# @package model` puts others elsewhere than below the package that is asked for.
            whole = composed("train", [*folders, f"attention={choice}"])
            with open_dict(whole):  # what it has not, it refuses itself
                own = OmegaConf.merge(whole.model.attention, own)
        elif "name" not in own:
            raise ConfigError(f"layers.pattern: {_no_attention(name)}")
        OmegaConf.update(config, f"layers.attentions.{name}", own, merge=False, force_add=True)
    return config


def _no_attention(name: str) -> str:
    known = ["own", *choices("attention")]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? There" if near else "there"
    return f"there is no attention '{name}'; {hint} are {', '.join(known)}"


def _require_text(resolved: dict[str, Any]) -> None:
    """Refuse text that no file or file name can hold, before hours of training end with it."""
    for key, value in flat(resolved).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not _CAN_BE_WRITTEN.fullmatch(text):
                raise _no_text(key, text)


def _no_text(key: str, text: str) -> ConfigError:
    return ConfigError(f"{key} ({text!a}) holds bytes that are no text; give it in UTF-8")


def _literal(node: Any) -> Any:
    """Escape what looks like an interpolation: what is resolved is not resolved again."""
    if isinstance(node, dict):
        return {key: _literal(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_literal(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node
