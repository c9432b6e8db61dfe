"""The configuration that a run records, and whether the one asked for now is the same."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from files.errors import RunError
from launch.errors import ConfigError
from launch.schemas import TrainConfig
from settings.fields import default_of
from tracking.configuration import (
    PASSES,
    differences,
    flat,
    read_configuration,
    sequences_per_step,
)


def as_yaml(config: TrainConfig) -> str:
    """Return a configuration as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(as_values(config)))


def as_values(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as nested plain values, each key once."""
    node = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))
    del node["model"]["layers"]  # follows the group `layers`
    return node


def require_same_run(saved: Path, config: TrainConfig) -> None:
    """Refuse to resume a run whose configuration was another.

    Args:
        saved: The run's config.yaml.
        config: What is asked for now.

    Raises:
        ConfigError: Naming each field, its old and its new value.
    """
    try:
        old = read_configuration(saved)
    except RunError as error:
        raise ConfigError(str(error)) from error
    new = flat(as_values(config))
    if sequences_per_step(old) == sequences_per_step(new) is not None:
        for key in PASSES:
            del old[key], new[key]
    # A key that came after the run began had its default then.
    defaults = {key: default_of(TrainConfig, key) for key in new}
    old = {key: one for key, one in defaults.items() if one is not dataclasses.MISSING} | old
    if changed := differences(old, new):
        listed = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changed.items())
        raise ConfigError(
            f"run '{config.run_name}' exists with another configuration ({listed}); choose another "
            "name with run_name=..."
        )
