"""Compare finished runs by perplexity, KV cache and speed: python eval_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import dataclasses  # noqa: E402
import datetime  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import run_config  # noqa: E402
from run_config import say  # noqa: E402

if TYPE_CHECKING:
    import torch

    from evaluation.comparison import EvaluatedRun
    from evaluation.variants import Group


def main(config: run_config.EvalConfig) -> None:
    """Evaluate the runs that the configuration chooses, print the tables, write the report."""
    from evaluation.report import (
        DECODE_NOTE,
        decode_sections,
        new_report,
        require_writable,
        update_report,
    )
    from evaluation.variants import add_decode_speed, compare
    from training.hardware import pick_device

    device = pick_device(config.device)
    started = datetime.datetime.now(datetime.UTC)
    require_writable(Path(config.reports_dir))  # before hours of scoring
    evaluated, left_out = _evaluate(config, device)
    groups = compare(evaluated, config.eval.baseline, is_one_study=config.study is not None)
    for variant in (variant for group in groups for variant in group.variants):
        left_out += [f"{name} repeats a seed of {variant.label}" for name in variant.ignored]
    facts = _facts(evaluated, device, started)
    if left_out:
        facts["Left out"] = "; ".join(left_out)
    if notes := [note for run in evaluated for note in run.notes]:
        facts["Not as trained"] = "; ".join(notes)
    # Scoring may have taken hours: kept at once.
    folder = new_report(Path(config.reports_dir), config.name_of_report, groups, facts)
    _print_tables(groups)
    if config.eval.decode_speed.batch_sizes and config.eval.decode_speed.contexts:
        _warn("timing decoding")
        add_decode_speed(groups, config.eval, device, say)
        tables = [part for group in groups for part in decode_sections(group.results, "simple")]
        for part in [*tables, DECODE_NOTE]:
            say(f"\n{part}")
        update_report(folder, groups, facts)
    _mirror(config, folder, groups)
    say(f"\n{folder}/report.html, report.md, results.json")


def _evaluate(
    config: run_config.EvalConfig, device: "torch.device"
) -> "tuple[list[EvaluatedRun], list[str]]":
    """Evaluate the chosen runs; where none was named, one that cannot be is told and left out.

    Returns:
        What was found, and a line for each run that was left out.

    Raises:
        ConfigError: If a run that was named cannot be evaluated, or none could.
        EvaluationError: If there is no run, or none of the baseline.
    """
    from evaluation.comparison import choose_runs, evaluate_run, require_baseline
    from tracking.failures import is_out_of_memory

    found: list[EvaluatedRun] = []
    left_out: list[str] = []
    runs = choose_runs(config.runs_path, config.patterns(), left_out.append, config.study)
    # By their summaries, before hours of scoring.
    attentions = (str((run.read_summary() or {}).get("attention")) for run in runs)
    require_baseline(attentions, config.eval.baseline)
    for line in left_out:
        _warn(f"left out: {line}")
    for run in runs:
        _warn(f"evaluating {run.name}")
        try:
            found.append(evaluate_run(run, config.split, config.eval, device, say))
        except (*run_config.USER_ERRORS, MemoryError, RuntimeError) as error:
            is_users = isinstance(error, run_config.USER_ERRORS)
            if not is_users and (config.run is not None or not is_out_of_memory(error)):
                raise
            if config.run is not None:
                raise run_config.ConfigError(f"{run.name}: {error}") from error
            left_out.append(f"{run.name}: {' '.join(str(error).split())}")
            _warn(f"left out: {left_out[-1]}")
            continue
        for note in found[-1].notes:
            _warn(note)
    if not found:
        raise run_config.ConfigError("no run could be evaluated; see the lines above")
    return found, left_out


def _warn(line: str) -> None:
    say(line, file=sys.stderr)


def _print_tables(groups: "Sequence[Group]") -> None:
    from evaluation.headline import headline
    from evaluation.report import note, protocol_line, table
    from evaluation.variants import differing_fields

    for group in groups:
        if group is not groups[0]:
            fields = differing_fields(groups[0].protocol, group.protocol)
            say(f"\nIn a table of their own, since their protocol cards differ in {fields}:")
        if group.runs[0].windows is not None:
            say(f"\n{protocol_line(group.runs[0].row)}")
        say(f"\n{table(group.results, 'simple')}")
        for difference in group.differs:
            say(f"\nNot equal, besides the attention: {difference}")
        if sentences := headline(group.results):
            say(f"\n{sentences}")
    say(f"\n{note([result for group in groups for result in group.results])}")


def _facts(
    runs: "Sequence[EvaluatedRun]", device: "torch.device", started: datetime.datetime
) -> dict[str, str]:
    """Return what a report says of how it came about."""
    from evaluation.machine import describe_hardware
    from training.record import git_commit, versions

    trained = [run.row["versions"] or {} for run in runs]
    commits = sorted({str(run.row["git_commit"]) for run in runs if run.row["git_commit"]})
    facts = {
        "Command": shlex.join(["python", "eval_model.py", *sys.argv[1:]]),
        "Date": started.isoformat(timespec="minutes"),
        "Hardware": describe_hardware(device),
        "Evaluated with": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Evaluated at commit": git_commit(run_config.ROOT) or "not in a repository",
        "Trained at commit": ", ".join(commits) or "not recorded",
    }
    if any(versions != trained[0] for versions in trained) or trained[0] != versions():
        described = {", ".join(f"{n} {v}" for n, v in found.items()) for found in trained if found}
        facts["Trained with"] = "; ".join(sorted(described)) or "not recorded"
    return facts


def _mirror(config: run_config.EvalConfig, folder: Path, groups: "Sequence[Group]") -> None:
    """Send tables and plots to wandb."""
    from evaluation.report import RUN_COLUMNS, VARIANT_COLUMNS
    from tracking.wandb_mirror import WandbMirror

    tracking = dataclasses.replace(config.tracking, group=config.tracking.group or config.study)
    mirror = WandbMirror(tracking, folder, folder.name, dataclasses.asdict(config), say)
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
    for path in sorted(folder.glob("*.png")):
        mirror.image(path.stem, path)
    mirror.finish()


if __name__ == "__main__":
    run_config.run("eval", run_config.EvalConfig, main)
