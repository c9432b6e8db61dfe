"""The keys of the entry points: which there are, and what each takes, as their fields say."""

import ast
import dataclasses
import functools
import os
import re
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

import modeling
from launch import schemas
from settings.fields import allows_null, along, hints, meanings, meanings_in

SCRIPTS = {
    "train": "train_model.py",
    "eval": "eval_model.py",
    "generate": "generate_text.py",
    "export": "export_model.py",
    "prepare": "prepare_data.py",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key takes.

    Args:
        kind: prose, path, folder, label or name (texts); word (one of a few), int, float, bool or
            other.
        is_list: Whether it takes several.
        may_be_null: Whether null is none.
    """

    kind: str
    is_list: bool = False
    may_be_null: bool = False

    @property
    def is_text(self) -> bool:
        """Whether any character may stand in it."""
        return self.kind in ("prose", "path", "folder", "label", "name")


@functools.cache
def keys_of(config_name: str) -> dict[str, Key]:
    """Return every key of an entry point, dotted.

    Those of an attention are in `attention_keys`, those of a mixture's corpora as of `data`.
    """
    found = _of_schema(schemas.SCHEMAS[config_name], "")
    if config_name == "train":
        names = {name for keys in attention_keys().values() for name in keys}
        found |= {f"model.attention.{name}": _of_attention(name) for name in sorted(names)}
    return found


def _of_schema(schema: Any, prefix: str) -> dict[str, Key]:
    """Return the keys of a section and of those in it, but for one that follows another."""
    found: dict[str, Key] = {}
    for field in dataclasses.fields(schema):
        name, hint = f"{prefix}{field.name}", hints(schema)[field.name]
        if "follows" in field.metadata:
            continue
        found |= _of_schema(hint, f"{name}.") if is_dataclass(hint) else {name: _key(field, hint)}
    return found


def _key(field: dataclasses.Field[Any], hint: Any) -> Key:
    kind = field.metadata.get("kind", "word" if "one_of" in field.metadata else "")
    if hint is Any:  # of eval_model.py: one or several
        return Key(kind or "name", is_list=True, may_be_null=True)
    may_be_null = allows_null(hint)
    if may_be_null:
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    is_list = typing.get_origin(hint) is list
    if is_list:
        (hint,) = typing.get_args(hint)
    if hint is str:
        return Key(kind or "name", is_list, may_be_null)
    return Key(hint.__name__ if hint in (int, float, bool) else "other", is_list, may_be_null)


def look_up(config_name: str, key: str) -> Key | None:
    """Return what a dotted key takes, also that of a corpus in a mixture; None if there is none."""
    if key in keys_of(config_name):
        return keys_of(config_name)[key]
    if leaf := in_a_pattern(key):
        return keys_of(config_name).get(f"model.attention.{leaf}")
    fields, hint = along(schemas.SCHEMAS[config_name], key)
    is_key = hint not in (None, Any) and not is_dataclass(hint)
    follows = any("follows" in field.metadata for field in fields)
    return _key(fields[-1], hint) if is_key and not follows else None


def in_a_pattern(key: str) -> str:
    """Return KEY of layers.attentions.NAME.KEY, of an attention in layers.pattern; else nothing."""
    names = key.split(".")
    return names[3] if len(names) == 4 and names[:2] == ["layers", "attentions"] else ""


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
        inherited = [key for base in bases if base != "_self_" for key in keys(base)]
        return list(dict.fromkeys([*inherited, *node.get("attention", node)]))

    found = {path.stem: keys(path.stem) for path in sorted(folder.glob("*.yaml"))}
    return {name: [key for key in own if key != "defaults"] for name, own in found.items()}


@functools.cache
def _attentions() -> list[ast.ClassDef]:
    """Return the classes of modeling/attention unread by Python, which would import PyTorch."""
    paths = sorted(Path(modeling.__file__).with_name("attention").glob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    return [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]


def _of_attention(name: str) -> Key:
    """Return what a key of an attention takes; beyond whole numbers its own class decides."""
    for node in _attentions():
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name:
                is_whole = ast.unparse(field.annotation) in ("int", "int | None")
                return Key("int", may_be_null=True) if is_whole else Key("other")
    return Key("other")


def meaning_of(config_name: str, key: str, attention: str = "") -> str:
    """Return what a key means, as the text under its field says.

    Args:
        config_name: Of the entry point.
        key: Dotted.
        attention: Whose meaning a key of `model.attention` has, if several have such a key.
    """
    *parents, name = key.split(".")
    if key == "model.attention.name":
        return "Name that the attention is registered by; attention=NAME chooses it."
    if parents == ["model", "attention"]:
        classes = sorted(_attentions(), key=lambda node: attention not in _registered(node))
        found = map(meanings_in, classes)
        return next((texts[name] for texts in found if name in texts), "")
    schema: Any = schemas.SCHEMAS[config_name]
    for parent in parents:
        schema = hints(schema)[parent]
    return meanings(schema).get(name, "")


def _registered(node: ast.ClassDef) -> set[Any]:
    """Return the names that a class is registered by."""
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    return {one.value for call in calls for one in call.args if isinstance(one, ast.Constant)}


@functools.cache
def groups_of(config_name: str) -> dict[str, list[str]]:
    """Return the groups of an entry point, each with the names of its choices."""
    defaults = _read(schemas.ROOT / "conf" / f"{config_name}.yaml").get("defaults", [])
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry]
    return {name: choices(name) for name in names if re.fullmatch(r"\w+", name)}


def choices(group: str) -> list[str]:
    """Return the names of a group's files in conf/."""
    return sorted(path.stem for path in (schemas.ROOT / "conf" / group).glob("*.yaml"))


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML file of kvlab's; {} where it is none, which composing will say."""
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return node if isinstance(node, dict) else {}


def entries_with(key: str) -> list[str]:
    """Return the entry points that have a key, a section or a group of that name."""
    return [
        name
        for name in schemas.SCHEMAS
        if look_up(name, key) is not None
        or key in groups_of(name)
        or any(known.startswith(f"{key}.") for known in keys_of(name))
    ]
