"""The runs of a sweep as jobs of an installed launcher of Hydra's, such as submitit's for Slurm."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from launch import schemas
from launch.compose import composed, files
from launch.errors import ConfigError
from launch.failures import EXIT_FAILED
from launch.quoting import quoted
from launch.sweep import Maker, Outcome, Run
from tracking.configuration import flat


def settings_of_launcher(config_name: str, typed: Sequence[str]) -> DictConfig:
    """Return the settings of the launcher that is typed, or that conf/local/default.yaml chooses.

    Args:
        config_name: Of the entry point.
        typed: What is typed of it.

    Raises:
        ConfigError: If it would have code called that is not an installed plugin's.
    """
    settings: DictConfig = composed(config_name, list(typed), with_hydra=True).hydra.launcher
    for key, value in flat(cast(dict[str, Any], OmegaConf.to_container(settings))).items():
        is_plugin = key == "_target_" and str(value).startswith(
            ("hydra._internal.core_plugins.", "hydra_plugins.")
        )
        if "_target_" in f"{key} {value}" and not is_plugin:
            raise ConfigError(
                f"hydra.launcher.{key} ({value}) cannot be set; use hydra/launcher=..."
            )
    return settings


def is_here(settings: DictConfig) -> bool:
    """Tell whether settings are those of Hydra's own launcher, which is none of other processes."""
    return str(settings["_target_"]).startswith("hydra._internal.")


@dataclass
class _Jobs:
    """What a job of a launcher calls with its number; pickled for it."""

    runs: Sequence[Run]
    make: Maker

    def __call__(self, config: DictConfig) -> Outcome:
        return self.make(self.runs[config.number])


def launched(
    settings: DictConfig,
    runs: Sequence[Run],
    make: Maker,
    folder: Path,
) -> list[Outcome]:
    """Have a launcher make each run in a job of its own, and wait for all.

    Hydra composes nothing in a job but its number: what files set of Hydra has no effect there.

    Args:
        settings: What `settings_of_launcher` returned.
        runs: Of the sweep.
        make: Makes one of them.
        folder: Where the launcher may write.

    Returns:
        Of each run.
    """
    paths = [str(schemas.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    whole = composed("_launcher", [f"hydra.sweep.dir={quoted(str(folder))}"], with_hydra=True)
    with open_dict(whole):
        whole.hydra.launcher = settings
    with files():
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        launcher = Plugins.instance().instantiate_launcher(context, _Jobs(runs, make), whole)
        numbers = [[f"number={number}"] for number in range(len(runs))]
        try:
            done = launcher.launch(numbers, initial_job_idx=0)
        except Exception as error:  # of whichever launcher
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return [(EXIT_FAILED, f"the launcher: {reason}")] * len(runs)
    return [job.return_value for job in done]
