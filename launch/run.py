"""From the command line to the exit status: what every entry point calls.

`run` composes the configuration, merges it into a fresh schema (a misspelt key has nowhere to go),
checks every value, and only then calls the job.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import run_config
from launch.compose import (
    COMPOSING_FAILED,
    checked,
    composed,
    for_hydra,
    help_text,
    register,
    require_sound,
)
from launch.errors import ConfigError, JobFailed
from launch.explain import explain
from launch.failures import (
    EXIT_BAD_INPUT,
    EXIT_BEFORE_TRAINING,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    STATUS_OF,
    rank_and_size,
    status_of,
    tell,
    tell_for_all_ranks,
    tell_of,
)
from launch.hydra_guard import num_jobs, require_plain_hydra
from launch.terminal import complain, lost_output, outlive_readers
from run_config import Config
from tracking.wandb_environment import forget_names_of_one_run
from training.errors import AlreadyTold

_started_here = False


def run(config_name: str, schema: type[Config], job: Callable[[Config], None]) -> NoReturn:
    """Compose, check, call the job once (or once per run of a multirun), and exit.

    Exit status: 0 done, 2 bad configuration or data, 75 interrupted with a resumable checkpoint,
    130 interrupted without one, 1 anything else. In a multirun a run that fails is reported by name
    and the others go on; where a launcher such as submitit's runs them in other processes, the
    first that failed is.

    Args:
        config_name: The file in conf/ that says what the entry point reads, without its suffix.
        schema: Of the same.
        job: Gets the checked configuration.
    """
    global _started_here
    _started_here = True
    outlive_readers()
    register()
    os.environ["PROJECT_ROOT"] = str(run_config.ROOT)
    # Hydra would replace a traceback by a hint; here it hands every exception on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = for_hydra(config_name, sys.argv[1:])
    is_help = bool({"--help", "-h"} & set(arguments))
    has_flags = not is_help and any(argument.startswith("-") for argument in arguments)
    # Hydra's own parser: what is looked at here has to be what Hydra will see.
    flags = get_args_parser().parse_args(arguments if has_flags else [])
    is_multirun: bool = flags.multirun
    statuses: list[int] = []
    broken: list[str] = []

    # A launcher may pickle this function and call it in a process that begins here.
    def task(config: DictConfig) -> None:
        if not _is_started_here():
            outlive_readers()
        register()
        name = _run_name(config) if is_multirun else ""
        tell_of(name, config_name)
        reason = ""
        try:
            job(checked(config, schema))
            status = 0
        except AlreadyTold as told:
            status = STATUS_OF.get(told.kind, EXIT_FAILED)
        except Exception as error:
            tell_for_all_ranks(error)
            status = status_of(error)
            reason = f"{type(error).__name__}: {error}" if status == 1 else str(error)
        if status and not _is_started_here():
            raise JobFailed(f"{name}: {reason}" if name else reason, status)
        statuses.append(status)
        if status and is_multirun:
            broken.append(name or "one without a name")
        # Where several ranks train, all have to agree on what comes next: nothing.
        if status == EXIT_INTERRUPTED or (status and rank_and_size()[1] > 1):
            sys.exit(status)

    try:
        require_sound(arguments)
        if is_help:
            print(help_text(config_name))
        elif has_flags:
            require_plain_hydra(config_name, flags)
            if is_multirun and num_jobs(config_name, flags) > 1:
                for name in forget_names_of_one_run():
                    complain(f"{name} names one run, and this is a sweep of several: ignored")
            sys.argv[1:] = arguments
            conf = str(run_config.ROOT / "conf")
            # For the processes of a launcher.
            paths = [str(run_config.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            hydra.main(version_base="1.3", config_path=conf, config_name=config_name)(task)()
        else:
            # A single run needs no launcher, which would compose everything twice.
            task(composed(config_name, arguments))
    except COMPOSING_FAILED as error:
        is_plain = isinstance(error, ConfigError)
        tell_for_all_ranks(error if is_plain else ConfigError(explain(error, schema)))
        sys.exit(EXIT_BAD_INPUT)
    except JobFailed as failed:
        complain(
            f"a job ended with status {failed.status}: {failed.reason}; "
            f"submitit keeps each job's output in .multirun/.submitit of the runs folder"
        )
        sys.exit(failed.status)
    except KeyboardInterrupt as interrupted:
        tell(interrupted)
        sys.exit(EXIT_BEFORE_TRAINING)
    if broken:
        complain(
            f"{len(broken)} of {len(statuses)} runs failed: {', '.join(broken)}; the same command "
            "tries them again"
        )
    status = max(statuses, default=0)
    sys.stdout.flush()
    if (lost := lost_output()) and status == 0:
        complain(f"stdout: {lost.strerror}; not all of the output could be written to it")
        # A training's record is its files.
        status = 0 if config_name == "train" and not is_help else EXIT_FAILED
    sys.exit(status)


def _is_started_here() -> bool:
    """Tell the process that a user started from one in which a launcher runs a job of it."""
    return _started_here


def _run_name(config: DictConfig) -> str:
    """Return the name of the run, as far as it can be worked out of a configuration not checked."""
    try:
        return str(OmegaConf.select(config, "run_name", default=""))
    except OmegaConfBaseException:
        return ""
