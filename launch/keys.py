"""The keys of the entry points: which there are, and what each takes."""

import dataclasses
import functools
import os
import re
import types
import typing
from typing import Any

import yaml

from launch import schemas

SCRIPTS = {
    "train": "train_model.py",
    "eval": "eval_model.py",
    "generate": "generate_text.py",
    "export": "export_model.py",
    "prepare": "-m data.prepare",
}
# Text by type, but one of a few words; the settings' `problems` say which.
_WORDS = {
    *("baseline", "cache_dtype", "command", "convert", "decode_path", "device", "dtype"),
    *("hf_modules", "invalid_utf8", "kind", "match", "mlp", "mode", "norm", "parallelism"),
    *("position_embedding", "precision", "share", "source", "split"),
}
# Prose, patterns and templates: a comma or ${ in them is never more than that.
_PROSE = {"prompt", "sample_prompt", "text_template", "document_start"}
_PATHS = {
    *("data_folder", "folder", "hf", "init_from", "out", "path", "prepared_dir", "reports_dir"),
    *("runs_dir", "task_folder"),
}
# In these ~ is replaced as they are typed: Hydra makes a folder in the first.
FOLDERS_OF_RUNS = ("runs_dir", "reports_dir")
# The keys of an attention that layers.pattern names.
IN_A_PATTERN = r"layers\.attentions\.\w+\.(\w+)"
_WHOLE = r"(num_\w+|\w*head_dim|hidden_size|\w+_rank)"


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key takes.

    Args:
        kind: prose, path, name (of anything), word (one of a few), int, float, bool or other.
        is_list: Whether it takes several.
        may_be_null: Whether null is none.
    """

    kind: str
    is_list: bool = False
    may_be_null: bool = False

    @property
    def is_text(self) -> bool:
        """Whether any character may stand in it."""
        return self.kind in ("prose", "path", "name")


@functools.cache
def keys_of(config_name: str) -> dict[str, Key]:
    """Return every key of an entry point, dotted.

    Those of an attention are in `attention_keys`, those of a mixture's corpora as of `data`.
    """
    found = _of_schema(schemas.SCHEMAS[config_name], "")
    # They follow the group `layers`.
    found = {key: one for key, one in found.items() if not key.startswith("model.layers.")}
    if config_name == "train":
        names = sorted({key for keys in attention_keys().values() for key in keys})
        whole = Key("int", may_be_null=True)
        found |= {
            f"model.attention.{name}": whole if re.fullmatch(_WHOLE, name) else Key("other")
            for name in names
        }
    return found


def _of_schema(schema: type, prefix: str) -> dict[str, Key]:
    found: dict[str, Key] = {}
    for name, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            found |= _of_schema(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _key(name, hint)
    return found


def _key(name: str, hint: Any) -> Key:
    if hint is Any:  # of eval_model.py: one or several
        return Key("path" if name in _PATHS else "name", is_list=True, may_be_null=True)
    may_be_null = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        may_be_null = True
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    is_list = typing.get_origin(hint) is list
    if is_list:
        (hint,) = typing.get_args(hint)
    if hint is str:
        for kind, names in (("prose", _PROSE), ("path", _PATHS), ("word", _WORDS)):
            if name in names:
                return Key(kind, is_list, may_be_null)
        return Key("name", is_list, may_be_null)
    kind = hint.__name__ if hint in (int, float, bool) else "other"
    return Key(kind, is_list, may_be_null)


def look_up(config_name: str, key: str) -> Key | None:
    """Return what a dotted key takes, also that of a corpus in a mixture; None if there is none."""
    if re.fullmatch(r"data\.weights\.[^.]+", key):
        return Key("float")
    if config_name == "train" and (found := re.fullmatch(IN_A_PATTERN, key)):
        key = f"model.attention.{found[1]}"
    return keys_of(config_name).get(re.sub(r"^data\.corpora\.[^.]+\.", "data.", key))


def with_home(folder: str) -> str:
    """Return a folder with a leading ~ replaced, and all else as it is."""
    return os.path.expanduser(folder)  # noqa: PTH111 (a Path would drop what ends it)


@functools.cache
def attention_keys() -> dict[str, list[str]]:
    """Return the keys below model.attention that each choice of `attention` has."""
    folder = schemas.ROOT / "conf" / "attention"

    def keys(name: str) -> list[str]:
        node = _read(folder / f"{name}.yaml")
        bases = [str(base).partition("@")[0] for base in node.get("defaults", [])]
        own = node.get("attention", node)
        found = [key for base in bases if base != "_self_" for key in keys(base)]
        return [*found, *(k for k in own if k not in found and k not in ("defaults",))]

    return {path.stem: keys(path.stem) for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def groups_of(config_name: str) -> dict[str, list[str]]:
    """Return the groups of an entry point, each with the names of its choices."""
    conf = schemas.ROOT / "conf"
    defaults = _read(conf / f"{config_name}.yaml").get("defaults", [])
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry]
    return {name: choices(name) for name in names if re.fullmatch(r"\w+", name)}


def choices(group: str) -> list[str]:
    """Return the names of a group's files in conf/."""
    return sorted(path.stem for path in (schemas.ROOT / "conf" / group).glob("*.yaml"))


def _read(path: Any) -> dict[str, Any]:
    """Read a YAML file of kvlab's; {} where it is none, which composing will say."""
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return node if isinstance(node, dict) else {}


def entries_with(key: str) -> list[str]:
    """Return the entry points that have a key or a group of that name."""
    return [
        name
        for name in schemas.SCHEMAS
        if look_up(name, key) is not None
        or key in groups_of(name)
        or any(known.startswith(f"{key}.") for known in keys_of(name))
    ]
