"""Settings of this machine: of conf/local/default.yaml each entry point takes what it has."""

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch import schemas
from launch.errors import ConfigError
from launch.keys import entries_with, groups_of, look_up, with_home
from launch.mistakes import unknown_key


def local_settings(config_name: str) -> dict[str, Any]:
    """Return the machine's settings that an entry point has; {} where there are none.

    Raises:
        ConfigError: If the file cannot be read, or no entry point has one of its keys.
    """
    path = schemas.ROOT / "conf" / "local" / "default.yaml"
    where = "conf/local/default.yaml"
    if not path.exists():
        return {}
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    if node is None or node == {}:
        return {}
    if not isinstance(node, dict):
        raise ConfigError(f"{where} must hold keys, such as trainer: {{num_threads: 1}}")
    defaults = node.pop("defaults", [])
    found = _those_of(config_name, node, "", where)
    chosen = [one for one in defaults if _is_of(config_name, one, where)]
    return {**({"defaults": chosen} if chosen else {}), **found}


def _those_of(config_name: str, node: dict[Any, Any], prefix: str, where: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        known = look_up(config_name, key)
        if key == "hydra" or key.startswith("model.attention") or known:
            if key.startswith("model") and config_name != "train":
                continue
            is_folder = known and known.kind == "folder" and isinstance(value, str)
            kept[name] = with_home(value) if is_folder else value
        elif isinstance(value, dict) and entries_with(key):
            if below := _those_of(config_name, value, f"{key}.", where):
                kept[name] = below
        elif not entries_with(key):
            raise ConfigError(f"{where}: {unknown_key('train', key)}")
        elif key in groups_of(config_name):
            raise ConfigError(
                f"{where}: {key} is chosen under defaults: - override /{key}: {value}"
            )
    return kept


def _is_of(config_name: str, entry: Any, where: str) -> bool:
    """Return whether an entry of the defaults list chooses for a group that an entry point has."""
    if not isinstance(entry, dict):
        return True
    (name,) = entry
    group = str(name).removeprefix("override ").removeprefix("optional ").strip().lstrip("/")
    if group.startswith("hydra"):
        return True
    group = group.partition("@")[0]
    if not entries_with(group):
        raise ConfigError(f"{where}: {unknown_key('train', group)}")
    return group in groups_of(config_name)
