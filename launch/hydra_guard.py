"""What Hydra must not be made to do: import, call or write what a configuration names."""

import argparse
import re
from collections.abc import Iterator
from typing import Any, cast

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from launch import schemas
from launch.compose import register
from launch.errors import ConfigError
from tracking.configuration import flat


def require_plain_hydra(config_name: str, flags: argparse.Namespace) -> list[list[str]]:
    """Refuse what makes Hydra import, call or write something before the job is even checked.

    Hydra calls what `_target_` names in its callbacks, its launcher and its logging; a file that
    somebody else wrote could set them. Below `hydra`, files of kvlab and the command line decide.

    Args:
        config_name: Of the entry point, as `launch.run.run` takes it.
        flags: The command line as Hydra's own parser has read it.

    Returns:
        The overrides of each run of a multirun; none for a single run.

    Raises:
        ConfigError: Naming the key.
    """
    for flag in ("config_dir", "config_name", "config_path", "experimental_rerun"):
        if getattr(flags, flag) is not None:
            raise ConfigError(
                f"--{flag.replace('_', '-')} is not supported; hydra.searchpath=[file:///FOLDER] "
                "adds a folder with files like those in conf/"
            )
    register()
    with hydra.initialize_config_dir(str(schemas.ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(loader)
        typed = []
        for text, override in zip(
            flags.overrides, parser.parse_overrides(flags.overrides), strict=True
        ):
            key = override.key_or_group
            if key == "hydra/launcher" or key.startswith("hydra.launcher."):
                typed.append(text)
            elif re.match(r"hydra\b", key) and key != "hydra.searchpath":
                raise ConfigError(
                    f"{key} cannot be set; of Hydra's own keys kvlab takes hydra/launcher, "
                    "hydra.launcher.* and hydra.searchpath"
                )
        expected = _flat_hydra(hydra.compose(config_name, typed, return_hydra_config=True))
        for key, value in expected.items():
            if "_target_" in f"{key} {value}" and not _is_of_an_installed_package(key, value):
                raise ConfigError(f"hydra.{key} ({value}) cannot be set; use hydra/launcher=...")
        for config in _composed_as_hydra_will(config_name, flags):
            found = _flat_hydra(config)
            for key in sorted({*expected, *found}):
                if found.get(key) != expected.get(key):
                    raise ConfigError(
                        f"a configuration file sets hydra.{key}, which may run code; remove it "
                        "there (the command line takes hydra/launcher and hydra.launcher.*)"
                    )
        return [*_jobs(config_name, flags)] if flags.multirun else []


def _is_of_an_installed_package(key: str, target: Any) -> bool:
    return key in ("launcher._target_", "sweeper._target_") and str(target).startswith(
        ("hydra._internal.core_plugins.", "hydra_plugins.")
    )


def _flat_hydra(config: DictConfig) -> dict[str, Any]:
    """Return Hydra's own settings with dotted keys, but for those that say what was chosen."""
    node = cast(dict[str, Any], OmegaConf.to_container(config.hydra, resolve=False))
    told = r"(overrides|runtime|searchpath|sweeper\.params|job\.override_dirname)\b"
    return {key: value for key, value in flat(node).items() if not re.match(told, key)}


def _given(whole: DictConfig) -> list[Override]:
    """Return the overrides of a multirun: those that a file sets, then those that were typed."""
    # As they stand: ${...} in them is of each run's own configuration, not of the whole one.
    node = cast(dict[str, Any], OmegaConf.to_container(whole.hydra, resolve=False))
    params = [f"{key}={value}" for key, value in (node["sweeper"]["params"] or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*params, *node["overrides"]["task"]])


def _jobs(config_name: str, flags: argparse.Namespace) -> Iterator[list[str]]:
    loader = GlobalHydra.instance().config_loader()
    whole = loader.load_configuration(config_name, flags.overrides, RunMode.MULTIRUN)
    for batch in BasicSweeper.split_arguments(_given(whole), None):
        yield from batch


def _composed_as_hydra_will(config_name: str, flags: argparse.Namespace) -> Iterator[DictConfig]:
    """Compose what Hydra will: once, or for a multirun the whole and each job of it."""
    mode = RunMode.MULTIRUN if flags.multirun else RunMode.RUN
    loader = GlobalHydra.instance().config_loader()
    whole = loader.load_configuration(config_name, flags.overrides, mode)
    yield whole
    if not flags.multirun:
        return
    given = _given(whole)
    # A plain value says nothing of Hydra: jobs that differ in such are composed once.
    choices = [
        override
        for override in given
        if re.match(r"hydra\b", override.key_or_group)
        or override.package is not None
        or loader.get_group_options(override.key_or_group)
    ]
    for batch in BasicSweeper.split_arguments(choices, None):
        for job in batch:
            yield loader.load_sweep_config(whole, job)
