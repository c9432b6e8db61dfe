"""What --help prints: every choice, every key with its value and its meaning."""

import textwrap
from collections.abc import Sequence
from string import Template
from typing import Any, cast

from omegaconf import OmegaConf

from launch.compose import composed
from launch.keys import groups_of, keys_of, meaning_of

_HOW_TO_WRITE = """\
Values are written without spaces around =. Paths and text are taken as they stand (with spaces,
quoted for the shell: prompt='def add'), numbers also as 1.5e6, 1_500_000, 10k, 10M or 2B, lists
with or without brackets: eval.tasks=a,b. See docs/command_line.md."""
_WIDTH = 96


def help_text(config_name: str, typed: Sequence[str] = ()) -> str:
    """Fill in the template in the entry point's YAML.

    Args:
        config_name: Of the entry point.
        typed: The command line, whose choices are made; the rest is passed over.
    """
    known = groups_of(config_name)
    chosen = [f"{group}={name}" for group, names in known.items() for name in names]
    config = composed(config_name, [one for one in typed if one in chosen], with_hydra=True)
    groups = "".join(f"{name}: {', '.join(options)}\n" for name, options in known.items())
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    return Template(config.hydra.help.template).substitute(
        APP_CONFIG_GROUPS=groups, CONFIG=_keys(config_name, values), HOW_TO_WRITE=_HOW_TO_WRITE
    )


def _keys(config_name: str, values: dict[str, Any]) -> str:
    """Return a paragraph for each section: a line for each key, and below it what it means."""
    sections: dict[str, list[str]] = {}
    attention = values["model"]["attention"]["name"] if "model" in values else ""
    for key in keys_of(config_name):
        *parents, name = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        if name in node and key != "model.attention":
            lines = sections.setdefault(parents[0] if parents else "", [])
            lines.append(f"{key}={_as_typed(node[name])}")
            meaning = meaning_of(config_name, key, attention)
            indent = " " * 4
            lines += textwrap.wrap(meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n\n".join("\n".join(lines) for lines in sections.values())


def _as_typed(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
