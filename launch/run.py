"""From the command line to the exit status: what every entry point calls.

`run` composes the configuration of each run, merges it into a fresh schema (a misspelt key has
nowhere to go), checks every value, and only then calls the job.
"""

import argparse
import dataclasses
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from launch import schemas, sweep
from launch.compose import COMPOSING_FAILED, checked, composed, require_sound
from launch.errors import ConfigError
from launch.explain import explain
from launch.failures import (
    EXIT_BAD_INPUT,
    EXIT_BEFORE_TRAINING,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    STATUS_OF,
    rank_and_size,
    report_error,
    report_for_all_ranks,
    report_of,
    status_of,
)
from launch.help import help_text
from launch.launcher import is_here, launched, settings_of_launcher
from launch.mistakes import sweep_without_flag
from launch.plan import Plan, launcher_of, planned
from launch.schemas import Config
from launch.terminal import complain, is_whole, outlive_readers
from launch.typed import for_hydra
from tracking.wandb_environment import forget_names_of_one_run
from training.errors import AlreadyReported

_QUESTIONS = {"--help", "-h", "--version"}
_JOBS = "sweep.jobs="


def run(config_name: str, schema: type[Config], job: Callable[[Config], None]) -> NoReturn:
    """Compose, check, call the job once (or once per run of a sweep), and exit.

    Exit status: 0 done, 2 bad configuration or data, 75 interrupted with a resumable checkpoint,
    130 interrupted without one, 1 anything else. In a sweep a run that fails is reported by name
    and the others are made, in this process or by a launcher such as submitit's.

    Args:
        config_name: The file in conf/ that says what the entry point reads, without its suffix.
        schema: Of the same.
        job: Gets the checked configuration.
    """
    outlive_readers()
    report_of("", config_name)
    sweep.current = None
    typed = sys.argv[1:]
    is_question = not _QUESTIONS.isdisjoint(typed)
    try:
        if is_question:
            is_version = "--version" in typed
            print(f"kvlab {_version()}" if is_version else help_text(config_name, typed))
            status = 0
        else:
            status = _run(_Entry(config_name, schema, job, typed))
    except COMPOSING_FAILED as error:
        is_plain = isinstance(error, ConfigError)
        report_for_all_ranks(error if is_plain else ConfigError(explain(error, schema, typed)))
        status = EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupted:
        report_error(interrupted)
        status = EXIT_BEFORE_TRAINING
    # A training's record is its files.
    if status == 0 and not is_whole() and (config_name != "train" or is_question):
        status = EXIT_FAILED
    sys.exit(status)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry point as it was called.

    Args:
        config_name: As `run` takes it.
        schema: The same.
        job: The same.
        typed: The command line.
    """

    config_name: str
    schema: type[Any]
    job: Callable[[Any], None]
    typed: Sequence[str]

    def call(self, config: DictConfig, name: str = "") -> sweep.Outcome:
        """Check a configuration and call the job; report what goes wrong.

        Args:
            config: As it was composed.
            name: Of the run, where there are several.

        Returns:
            The exit status, and why it is not 0.
        """
        report_of(name, self.config_name)
        try:
            self.job(checked(config, self.schema, self.typed))
        except AlreadyReported as reported:
            return STATUS_OF.get(reported.kind, EXIT_FAILED), "see above"
        except Exception as error:
            report_for_all_ranks(error)
            is_known = any(kind.__name__ in STATUS_OF for kind in type(error).__mro__)
            reason = str(error) if is_known else f"{type(error).__name__}: {error}"
            return status_of(error), reason
        return 0, ""

    def make(self, run: sweep.Run) -> sweep.Outcome:
        """Make a run of a sweep, maybe in a process that a launcher began; returns as `call`."""
        outlive_readers()
        return self.call(run.config, run.name)


def _run(entry: _Entry) -> int:
    """Make the runs that a command line asks for; return the exit status."""
    require_sound(entry.typed)
    is_training = entry.config_name == "train"
    typed_jobs = [one for one in entry.typed if is_training and one.startswith(_JOBS)]
    others = [one for one in entry.typed if one not in typed_jobs]
    flags, arguments = _parted(for_hydra(entry.config_name, others))
    plan = planned(entry.config_name, arguments)
    if flags.cfg:
        for one in plan.runs:
            print(OmegaConf.to_yaml(composed(entry.config_name, one)), end="")
        return 0
    typed_launcher = launcher_of(arguments)
    if flags.multirun or typed_launcher:
        launcher = settings_of_launcher(entry.config_name, typed_launcher)
    if flags.multirun:
        jobs = typed_jobs[-1].removeprefix(_JOBS) if typed_jobs else plan.jobs
        return _sweep(entry, plan._replace(jobs=jobs), launcher)
    if len(plan.runs) > 1:
        raise ConfigError(sweep_without_flag(entry.config_name, entry.typed, len(plan.runs)))
    if typed_launcher or typed_jobs:
        key = "hydra/launcher" if typed_launcher else "sweep.jobs"
        raise ConfigError(f"{key} is for the runs of a sweep: add -m")
    status, _ = entry.call(composed(entry.config_name, plan.runs[0]))
    return status


def _sweep(entry: _Entry, plan: Plan, launcher: DictConfig) -> int:
    """Make the runs of a sweep, here or by a launcher; return the exit status."""
    from launch.at_once import make_at_once, number_at_once

    if len(plan.runs) > 1:
        for name in forget_names_of_one_run():
            complain(f"{name} names one run, and this is a sweep of several: ignored")
    made = sweep.Sweep(entry.config_name, plan.runs)
    number = number_at_once(plan.jobs, made.runs)
    if not is_here(launcher):
        folder = Path(made.runs[0].config.runs_dir) / ".multirun"
        outcomes = launched(launcher, made.runs, entry.make, folder)
        for run, (status, reason) in zip(made.runs, outcomes, strict=True):
            made.end(run, status, reason)
        if status := made.conclude():
            complain(f"what each job printed is in {folder}/.submitit")
        return status
    if number > 1:
        make_at_once(made, entry.make, number)
    else:
        _make_in_turn(made, entry.make)
    return made.conclude()


def _make_in_turn(made: sweep.Sweep, make: sweep.Maker) -> None:
    """Make the runs of a sweep one after another, in this process."""
    sweep.current = made
    for run in made.runs:
        made.begin(run)
        status, reason = make(run)
        made.end(run, status, reason)
        # Where several ranks train, all have to agree on what comes next: nothing.
        if status == EXIT_INTERRUPTED or (status and rank_and_size()[1] > 1):
            break


def _parted(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Part flags from assignments, which `for_hydra` has put behind them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.error = _refuse_flags  # type: ignore[method-assign]
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("assignments", nargs="*")
    flags = parser.parse_args(arguments)
    return flags, flags.assignments


def _refuse_flags(message: str) -> NoReturn:
    """Say in one line what argparse would in its usage."""
    raise ConfigError(f"{message}; -m, --help, --version and --cfg job are the flags")


def _version() -> str:
    """Return kvlab's own version, from pyproject.toml."""
    text = (schemas.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])
