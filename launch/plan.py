"""The runs that a command line asks for: what is typed, and an experiment's arms and sweep.

    arms:
      - attention=mha
      - attention=gqa layers=window_full
    sweep:
      seed: 0,1,2
      jobs: auto

Each arm is made with each combination of the values below `sweep`. All of it is written as a user
would type it; `jobs` is no key of a run, but how many are made at once.
"""

import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from launch.compose import composed, parsed
from launch.errors import ConfigError
from launch.quoting import split_at_commas
from launch.typed import for_hydra
from tracking.configuration import flat

_LAUNCHER = re.compile(r"\+*hydra[./]launcher\b")
_SEARCH_PATH = "hydra.searchpath"
# Of Hydra's own settings: what was chosen, which is not what a file sets.
_CHOSEN = re.compile(r"(overrides|runtime|searchpath|job\.override_dirname)\b")


def launcher_of(arguments: Iterable[str]) -> list[str]:
    """Return what is typed of a launcher, which makes the runs of a sweep in other processes."""
    return [one for one in arguments if _LAUNCHER.match(one)]


class Plan(NamedTuple):
    """What a command line asks for.

    Args:
        runs: The overrides of each.
        jobs: How many are made at once, as it is written.
    """

    runs: list[list[str]]
    jobs: str = "1"


def planned(config_name: str, arguments: Sequence[str]) -> Plan:
    """Return the runs that a command line asks for.

    A key of a sweep that is typed, too, has the typed values; one that arms set chooses among them:
    `attention=mla` takes the arms that have it.

    Args:
        config_name: Of the entry point.
        arguments: Of the command line, as `launch.typed.for_hydra` returns them, without flags.

    Raises:
        ConfigError: If an arm cannot be read, none has what is typed, or a key of Hydra's is set.
    """
    launcher = launcher_of(arguments)
    typed = [one for one in arguments if one not in launcher]
    overrides = parsed(typed)
    parsed(launcher)
    for override in overrides:
        _require_own(override)
    experiments = [one for one in overrides if one.get_key_element() == "experiment"]
    if config_name != "train" or not experiments:
        return Plan(_product(typed))
    folders = [one for one in typed if one.startswith(f"{_SEARCH_PATH}=")]
    others = [one for one in typed if one not in folders and not one.startswith("experiment=")]
    plans = [_of_experiment(one, folders, others) for one in _values(experiments[-1])]
    return Plan([run for plan in plans for run in plan.runs], plans[0].jobs)


def _of_experiment(experiment: str, folders: list[str], typed: list[str]) -> Plan:
    whole = composed("train", [*folders, experiment], with_hydra=True)
    _require_no_setting_of_hydra(experiment, whole, folders)
    values = _sweep_of(experiment, whole)
    jobs = values.pop("jobs", "1")
    listed = [f"{key}={value}" for key, value in values.items()]
    swept = _as_typed(f"the sweep of {experiment}", folders, listed)
    arms, rest = _chosen_arms(experiment, whole, typed)
    runs = [
        run
        for arm in arms
        for run in _product(
            [
                *(*folders, experiment, *swept, *rest),
                *_as_typed(f"an arm of {experiment}", folders, arm),
            ]
        )
    ]
    return Plan(runs, jobs)


def _sweep_of(experiment: str, whole: DictConfig) -> dict[str, str]:
    """Return the values of each key in the sweep of an experiment, as they are typed."""
    if not isinstance(whole.sweep, DictConfig | None):
        raise ConfigError(f"{experiment}: sweep must hold keys, such as sweep: {{seed: 0,1,2}}")
    listed = cast(dict[str, Any], OmegaConf.to_container(whole.sweep or OmegaConf.create()))
    for key, value in listed.items():
        if isinstance(value, dict | list | None):
            raise ConfigError(
                f"{experiment}: sweep must hold values as they would be typed, such as {key}: a,b"
            )
    return {key: str(value) for key, value in listed.items()}


def _chosen_arms(
    experiment: str, whole: DictConfig, typed: list[str]
) -> tuple[list[list[str]], list[str]]:
    """Return the arms of an experiment that have what is typed, and what else is typed."""
    listed = whole.arms
    if not isinstance(listed, ListConfig | None):
        raise ConfigError(f"{experiment}: arms must be a list, such as arms: [attention=mla]")
    texts = [str(text) for text in listed or [""]]
    try:
        arms = [shlex.split(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"{experiment}: an arm cannot be read: {error}") from error
    parted = [dict(map(_parted, arm)) for arm in arms]
    of_arms = {key for arm in parted for key in arm}
    choosing = [one for one in typed if _parted(one)[0] in of_arms]
    kept = [
        arm
        for arm, values in zip(arms, parted, strict=True)
        if all(_has(values, *_parted(one), whole) for one in choosing)
    ]
    if not kept:
        raise ConfigError(
            f"{experiment} has no arm with {' '.join(choosing)}; it has {'; '.join(texts)}"
        )
    return kept, [one for one in typed if one not in choosing]


def _as_typed(what: str, folders: list[str], arguments: list[str]) -> list[str]:
    """Return what a file has as a user would type it as Hydra takes it."""
    try:
        found = for_hydra("train", ["-m", *folders, *arguments])[1 + len(folders) :]
        for override in parsed(found):
            _require_own(override, is_typed=False)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    return found


def _product(arguments: Sequence[str]) -> list[list[str]]:
    """Return each combination of the values of arguments, of which a key's last one counts."""
    values = {override.get_key_element(): _values(override) for override in parsed(arguments)}
    return [list(combination) for combination in itertools.product(*values.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise ConfigError(f"{key}: interval() has no end of values; list them, or use range()")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _require_own(override: Override, *, is_typed: bool = True) -> None:
    """Refuse what would change Hydra itself, but for a folder of files that a user types."""
    of_hydra = [
        name
        for name in (override.package, override.key_or_group)
        if re.match(r"hydra\b", str(name))
    ]
    if of_hydra and not (is_typed and of_hydra == [_SEARCH_PATH]):
        raise ConfigError(
            f"{of_hydra[0]} cannot be set; of Hydra's own keys kvlab takes hydra/launcher, "
            "hydra.launcher.* and hydra.searchpath"
        )
    if not is_typed and override.key_or_group == "experiment":
        raise ConfigError("an experiment chooses no other experiment")


def _require_no_setting_of_hydra(experiment: str, whole: DictConfig, folders: list[str]) -> None:
    """Refuse what an experiment sets below `hydra`: kvlab does not use it."""
    expected, found = (
        _of_hydra(one) for one in (composed("train", folders, with_hydra=True), whole)
    )
    for key in sorted({*expected, *found}):
        if found.get(key) == expected.get(key):
            continue
        if key.startswith("sweeper.params"):
            raise ConfigError(
                f"{experiment}: hydra.sweeper.params is now the key sweep at the top of the file, "
                "as in conf/experiment/study_nano.yaml"
            )
        raise ConfigError(f"{experiment} sets hydra.{key}, which kvlab does not use; remove it")


def _of_hydra(config: DictConfig) -> dict[str, Any]:
    node = cast(dict[str, Any], OmegaConf.to_container(config.hydra, resolve=False))
    return {key: value for key, value in flat(node).items() if not _CHOSEN.match(key)}


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
