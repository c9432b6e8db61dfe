"""From the command line to the exit status: what every entry point calls.

`run` composes the configuration, merges it into a fresh schema (a misspelt key has nowhere to go),
checks every value, and only then calls the job.
"""

import math
import os
import sys
import tomllib
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch import arms, schemas, sweep
from launch.compose import (
    COMPOSING_FAILED,
    checked,
    composed,
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
from launch.help import help_text
from launch.hydra_guard import require_plain_hydra
from launch.mistakes import sweep_without_flag
from launch.schemas import Config
from launch.terminal import complain, is_whole, outlive_readers
from launch.typed import for_hydra
from modeling.config import arrangement_label
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
    os.environ["PROJECT_ROOT"] = str(schemas.ROOT)
    # Hydra would replace a traceback by a hint; here it hands every exception on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    is_multirun = False
    sweep.current = None
    typed = sys.argv[1:]
    is_question = not {"--help", "-h", "--version"}.isdisjoint(typed)
    statuses: list[int] = []

    # A launcher may pickle this function and call it in a process that begins here.
    def task(config: DictConfig) -> None:
        if not _is_started_here():
            outlive_readers()
        register()
        name = str(_selected(config, "run_name") or "") if is_multirun else ""
        tell_of(name, config_name)
        reason = ""
        if sweep.current:
            attention = str(_selected(config, "model.attention.name") or "")
            label = _selected(config, "layers") and arrangement_label(config.layers)
            variant = "-".join(filter(None, [attention, label]))
            sweep.current.begin(name, variant, _selected(config, "seed"))
        try:
            settings = checked(config, schema, typed)
            if sweep.current and isinstance(settings, schemas.TrainConfig):
                sweep.current.train(settings.runs_path)
            job(settings)
            status = 0
        except AlreadyTold as told:
            status = STATUS_OF.get(told.kind, EXIT_FAILED)
            reason = "see above"
        except Exception as error:
            tell_for_all_ranks(error)
            status = status_of(error)
            is_known = any(kind.__name__ in STATUS_OF for kind in type(error).__mro__)
            reason = str(error) if is_known else f"{type(error).__name__}: {error}"
        if status and not _is_started_here():
            raise JobFailed(f"{name}: {reason}" if name else reason, status)
        statuses.append(status)
        if sweep.current:
            sweep.current.end(status, reason)
        # Where several ranks train, all have to agree on what comes next: nothing.
        if status == EXIT_INTERRUPTED or (status and rank_and_size()[1] > 1):
            if sweep.current:
                sweep.current.conclude()
            sys.exit(status)

    try:
        register()
        require_sound([] if is_question else typed)
        arguments = for_hydra(config_name, [] if is_question else typed)
        if is_question:
            print(f"kvlab {_version()}" if "--version" in typed else help_text(config_name))
        elif any(argument.startswith("-") for argument in arguments):
            # Hydra's own parser: what is looked at here has to be what Hydra will see.
            parser = get_args_parser()
            parser.error = _refuse_flags  # type: ignore[method-assign]
            flags = parser.parse_args(arguments)
            is_multirun = flags.multirun
            hydra_flags: list[str] = [one for one in arguments if one not in flags.overrides]
            commands = arms.commands(config_name, flags.overrides)
            lines: list[list[str]] = [hydra_flags + one for one in commands]
            jobs = [
                job
                for line in lines
                for job in require_plain_hydra(config_name, parser.parse_args(line))
            ]
            if is_multirun:
                if len(jobs) > 1:
                    for name in forget_names_of_one_run():
                        complain(f"{name} names one run, and this is a sweep of several: ignored")
                if config_name == "train":
                    sweep.require_names(jobs)
                sweep.current = sweep.Sweep(jobs, trains=config_name == "train")
            trainings = jobs if is_multirun and config_name == "train" else []
            _call_through_hydra(config_name, task, lines, trainings)
        else:
            # A single run needs no launcher, which would compose everything twice.
            commands = arms.commands(config_name, arguments)
            _require_flag_of_sweep(config_name, commands)
            task(composed(config_name, commands[0]))
    except COMPOSING_FAILED as error:
        is_plain = isinstance(error, ConfigError)
        tell_for_all_ranks(error if is_plain else ConfigError(explain(error, schema, typed)))
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
    if sweep.current:
        sweep.current.conclude()
    status = max(statuses, default=0)
    if status == 0 and not is_whole():
        # A training's record is its files.
        status = 0 if config_name == "train" and not is_question else EXIT_FAILED
    sys.exit(status)


def _call_through_hydra(
    config_name: str,
    task: Callable[[DictConfig], None],
    lines: list[list[str]],
    trainings: list[list[str]],
) -> None:
    """Have Hydra call a task as its command lines say, once or for each run of a multirun.

    Args:
        config_name: As `run` takes it.
        task: Gets the configuration that Hydra composes.
        lines: The command line for each arm of an experiment, or the only one.
        trainings: The overrides of each run of a multirun that trains.
    """
    # For the processes of a launcher.
    paths = [str(schemas.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    conf = str(schemas.ROOT / "conf")
    launchers = [one for one in lines[0] if one.startswith("hydra/launcher=")]
    is_here = launchers in ([], ["hydra/launcher=basic"])
    with sweep.leaving_nothing(trainings if is_here else []) as more:
        for line in lines:
            sys.argv[1:] = [*line, *more]
            hydra.main(version_base="1.3", config_path=conf, config_name=config_name)(task)()


def _refuse_flags(message: str) -> NoReturn:
    """Say in one line what argparse would in its usage."""
    raise ConfigError(f"{message}; -m, --help, --version and Hydra's --cfg job are the flags")


def _version() -> str:
    """Return kvlab's own version, from pyproject.toml."""
    text = (schemas.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def _require_flag_of_sweep(config_name: str, commands: list[list[str]]) -> None:
    """Refuse an experiment that is a sweep, where a single run of it would be trained in silence.

    Args:
        config_name: Of the entry point.
        commands: The arguments for each arm.

    Raises:
        ConfigError: With the number of runs, and the command.
    """
    arguments = commands[0]
    if not any(argument.startswith("experiment=") for argument in arguments):
        return
    params = composed(config_name, arguments, with_hydra=True).hydra.sweeper.params or {}
    given = {argument.lstrip("+").partition("=")[0] for argument in arguments}
    swept = [f"{key}={value}" for key, value in params.items() if key not in given]
    overrides = OverridesParser.create().parse_overrides(swept)
    runs = math.prod(len(list(o.sweep_iterator())) for o in overrides if o.is_sweep_override())
    runs *= len(commands)
    if runs > 1:
        raise ConfigError(sweep_without_flag(config_name, sys.argv[1:], runs))


def _is_started_here() -> bool:
    """Tell the process that a user started from one in which a launcher runs a job of it."""
    return _started_here


def _selected(config: DictConfig, key: str) -> Any:
    """Return a value, if it can be worked out of a configuration that is not checked; else None."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
