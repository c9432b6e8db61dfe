"""Comparing finished runs and external models: what eval_model.py does."""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from commands.external import (
    class_of,
    evaluate_external_models,
    find_external,
    given_text,
    load_tasks_of,
    reason_of,
)
from comparing.baseline import require_baseline
from comparing.decode_speed import add_decode_speed
from comparing.held_equal import threads
from comparing.tasks import TASK_COLUMNS, task_rows
from comparing.variants import Group, compare
from harness.tasks import Tasks
from interop.importing.external_model import HuggingFaceModel
from launch.errors import ConfigError
from launch.failures import USER_ERRORS
from launch.runs import located, require_study
from launch.schemas import ROOT, EvalConfig
from launch.terminal import announce, say
from measuring.errors import EvaluationError
from measuring.evaluate import evaluate_run
from measuring.machine import describe_hardware
from measuring.rows import EvaluatedRun
from measuring.runs import choose_runs
from reporting.report import new_report, require_writable, update_report
from reporting.tables import RUN_COLUMNS, VARIANT_COLUMNS
from reporting.terminal import print_comparison, print_decoding
from tracking.failures import is_out_of_memory
from tracking.wandb_mirror import WandbMirror
from training.endurance.provenance import git_commit, versions
from training.machine.hardware import pick_device


def main(config: EvalConfig) -> None:
    """Evaluate the runs that the configuration chooses, print the tables, write the report."""
    device = pick_device(config.device)
    started = datetime.datetime.now(datetime.UTC)
    require_writable(Path(config.reports_dir))  # before hours of scoring
    given = given_text(config)
    tasks = load_tasks_of(config)
    # By its name, and its files fetched, before hours of scoring.
    external = find_external(config.external())
    evaluated: list[EvaluatedRun] = []
    left_out: list[str] = []
    if given is None:
        evaluated, left_out = _evaluate(config, external, device, tasks)
    else:
        require_baseline([found.kind for found in external], config.eval.baseline)
    evaluated += evaluate_external_models(
        config, external, given, evaluated, device, tasks, left_out
    )
    groups = compare(
        evaluated,
        config.eval.baseline,
        is_one_study=config.study is not None,
        margin=config.eval.margin,
    )
    for variant in (variant for group in groups for variant in group.variants):
        for name in variant.ignored:
            left_out.append(f"{name} repeats a seed of {variant.label}")
            announce(f"left out: {left_out[-1]}")
    facts = _facts(evaluated, device, started)
    if external:
        loaded = "; ".join(
            f"{found.label}: {found.described}, {class_of(found, config)}" for found in external
        )
        facts["External models"] = loaded
    if left_out:
        facts["Left out"] = "; ".join(left_out)
    if notes := [note for run in evaluated for note in run.notes]:
        facts["Notes"] = "; ".join(notes)
    # Scoring may have taken hours: kept at once.
    folder = new_report(Path(config.reports_dir), config.name_of_report, groups, facts, announce)
    if config.eval.decode_speed.batch_sizes and config.eval.decode_speed.contexts:
        announce("timing decoding")
        add_decode_speed(groups, config.eval, device, say)
        update_report(folder, groups, facts)
        print_decoding(groups)
    print_comparison(groups, folder)
    _mirror(config, folder, groups)


def _evaluate(
    config: EvalConfig,
    external: Sequence[HuggingFaceModel],
    device: torch.device,
    tasks: Tasks | None,
) -> tuple[list[EvaluatedRun], list[str]]:
    """Evaluate the chosen runs; where none was named, one that cannot be is reported and left out.

    Returns:
        What was found, and a line for each run that was left out.

    Raises:
        ConfigError: If a run that was named cannot be evaluated, or none could.
        EvaluationError: If there is no run, or none of the baseline.
    """
    found: list[EvaluatedRun] = []
    left_out: list[str] = []
    try:
        if config.study is not None:
            require_study(Path(config.runs_dir), config.study)
        asked = config.patterns()
        folder, names = located(config.runs_path, asked or [])
        patterns = None if asked is None else names
        runs = choose_runs(folder, patterns, left_out.append, config.study)
    except EvaluationError as error:
        if not config.external() or config.run is not None or config.study is not None:
            raise
        raise ConfigError(
            f"{error}, or say which text hf models are scored on with data_folder=FOLDER, a "
            "prepared one (python prepare_data.py)"
        ) from error
    # By their summaries, before hours of scoring.
    attentions = [str((run.read_summary() or {}).get("attention")) for run in runs]
    require_baseline([*attentions, *(found.kind for found in external)], config.eval.baseline)
    for line in left_out:
        announce(f"left out: {line}")
    for number, run in enumerate(runs, start=1):
        announce(f"evaluating {run.name} ({number} of {len(runs)})")
        try:
            found.append(evaluate_run(run, config.split, config.eval, device, say, tasks))
        except (*USER_ERRORS, MemoryError, RuntimeError) as error:
            is_users = isinstance(error, USER_ERRORS)
            if not is_users and (config.run is not None or not is_out_of_memory(error)):
                raise
            if config.run is not None:
                raise ConfigError(reason_of(run.name, error)) from error
            left_out.append(reason_of(run.name, error))
            announce(f"left out: {left_out[-1]}")
            continue
        for line in found[-1].notes:
            announce(line)
    if not found:
        raise ConfigError("no run could be evaluated; see the lines above")
    return found, left_out


def _facts(
    runs: Sequence[EvaluatedRun], device: torch.device, started: datetime.datetime
) -> dict[str, str]:
    """Return what a report says of how it came about."""
    trained = [run.row["versions"] or {} for run in runs if not run.is_external]
    commits = sorted({str(run.row["git_commit"]) for run in runs if run.row["git_commit"]})
    facts = {
        "Command": shlex.join(["python", "eval_model.py", *sys.argv[1:]]),
        "Date": started.isoformat(timespec="minutes"),
        "Hardware": describe_hardware(device),
        "Evaluated with": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Evaluated at commit": git_commit(ROOT) or "not in a repository",
    }
    if trained:
        facts["Trained at commit"] = ", ".join(commits) or "not recorded"
        rows = [run.row for run in runs if not run.is_external]
        facts["Threads of the training"] = threads(rows)
    if any(found != versions() for found in trained):
        described = {", ".join(f"{n} {v}" for n, v in found.items()) for found in trained if found}
        facts["Trained with"] = "; ".join(sorted(described)) or "not recorded"
    return facts


def _mirror(config: EvalConfig, folder: Path, groups: Sequence[Group]) -> None:
    """Send tables and plots to wandb."""
    recorded = dataclasses.asdict(config)
    mirror = WandbMirror(config.tracking, folder, folder.name, recorded, say, config.study)
    results = [result for group in groups for result in group.results]
    rows = [run.row for group in groups for run in group.runs]
    for name, columns, items in (
        ("comparison", VARIANT_COLUMNS, results),
        ("runs", RUN_COLUMNS, rows),
    ):
        mirror.table(name, columns, [[item[key] for key in columns] for item in items])
    points = [{"variant": v["name"], **point} for v in results for point in v.get("decode", [])]
    if points:
        columns = [key for key in points[0] if key != "ms_by_round"]
        mirror.table("decode", columns, [[point[key] for key in columns] for point in points])
    if known := [
        [variant["name"], *point]
        for variant in results
        for point in variant["kv_cache_points"] or []
    ]:
        mirror.table("cache", ["variant", "tokens", "kv_cache_bytes"], known)
    if answers := [*task_rows(results)]:
        mirror.table("tasks", TASK_COLUMNS, answers)
    for path in sorted(folder.glob("*.png")):
        mirror.image(path.stem, path)
    mirror.finish()
