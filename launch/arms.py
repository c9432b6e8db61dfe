"""The arms of an experiment: runs that are no product of parameters, each as a user would type it.

    arms:
      - attention=mha
      - attention=gqa layers=window_full

Hydra's sweeper then makes its own product, of seeds say, for each of them.
"""

import re
import shlex
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from launch.compose import composed
from launch.errors import ConfigError
from launch.typed import for_hydra, split_at_commas


def commands(config_name: str, arguments: Sequence[str]) -> list[list[str]]:
    """Return the arguments for each arm of the experiments that are chosen; themselves if none is.

    A key that arms set chooses among them where it is typed, too: `attention=mla` takes the arms
    that have it.

    Args:
        config_name: Of the entry point.
        arguments: Of the command line, as `launch.typed.for_hydra` returns them.

    Raises:
        ConfigError: If an arm cannot be read, or none has what is typed.
    """
    chosen = [one for one in arguments if one.startswith("experiment=")][-1:]
    if config_name != "train" or not chosen:
        return [list(arguments)]
    found = []
    for name in split_at_commas(chosen[0].partition("=")[2]):
        own = [one for one in arguments if not one.startswith("experiment=")]
        found += _of_one(f"experiment={name}", own)
    return found


def _of_one(experiment: str, arguments: list[str]) -> list[list[str]]:
    folders = [one for one in arguments if one.startswith("hydra.searchpath=")]
    whole = composed("train", [*folders, experiment], with_hydra=True)
    texts = [str(arm) for arm in whole.arms]
    if not texts:
        return [[experiment, *arguments]]
    try:
        arms = [shlex.split(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"{experiment}: an arm cannot be read: {error}") from error
    parted = [dict(map(_parted, arm)) for arm in arms]
    swept = {key for arm in parted for key in arm}
    typed = [one for one in arguments if _parted(one)[0] in swept]
    rest = [one for one in arguments if one not in typed]
    kept = [
        arm
        for arm, values in zip(arms, parted, strict=True)
        if all(_has(values, *_parted(one), whole) for one in typed)
    ]
    if not kept:
        listed = "; ".join(texts)
        raise ConfigError(f"{experiment} has no arm with {' '.join(typed)}; it has {listed}")
    try:
        read = [for_hydra("train", [*folders, *arm])[len(folders) :] for arm in kept]
    except ConfigError as error:
        raise ConfigError(f"an arm of {experiment}: {error}") from error
    return [[experiment, *rest, *arm] for arm in read]


def _parted(argument: str) -> tuple[str, str]:
    key, _, value = argument.lstrip("+").partition("=")
    return key, value


def _has(arm: Mapping[str, str], key: str, values: str, whole: DictConfig) -> bool:
    """Tell whether an arm has one of the values that are typed for a key, or does by default."""
    choices = whole.hydra.runtime.choices
    default = choices[key] if key in choices else OmegaConf.select(whole, key)
    own = _plain(arm.get(key, str(default)))
    return own in [_plain(value) for value in split_at_commas(values)]


def _plain(value: str) -> str:
    return re.sub(r"[\s'\"]", "", value)
