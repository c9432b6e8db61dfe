"""The configuration that a run records, and whether the one asked for now is the same."""

import re
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from files.errors import RunError
from launch.errors import ConfigError
from launch.schemas import TrainConfig
from tracking.configuration import (
    PASSES,
    differences,
    flat,
    read_configuration,
    sequences_per_step,
)

_IN_A_CORPUS = re.compile(r"^data\.corpora\.[^.]+\.")


def as_yaml(config: TrainConfig) -> str:
    """Return a configuration as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def require_same_run(saved: Path, config: TrainConfig) -> None:
    """Refuse to go on with a run whose configuration was another.

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
    new = _flat(config)
    if sequences_per_step(old) == sequences_per_step(new) is not None:
        for key in PASSES:
            del old[key], new[key]
    # A key that came after the run began had its default then.
    defaults = _flat(TrainConfig)
    of_one = {key: _IN_A_CORPUS.sub("data.", key) for key in new}
    old = {key: defaults[one] for key, one in of_one.items() if one in defaults} | old
    changed = differences(old, new)
    if layers := [key for key in changed if key.startswith("model.layers.")]:
        # They follow the group `layers`.
        changed = {key: one for key, one in changed.items() if key not in layers}
    if changed:
        listed = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changed.items())
        raise ConfigError(
            f"run '{config.run_name}' exists with another configuration ({listed}); choose another "
            "name with run_name=..."
        )


def _flat(config: Any) -> dict[str, Any]:
    """Return a configuration, or the defaults of its class, with dotted keys."""
    return flat(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config))))
