"""Compare finished runs by perplexity, KV cache and speed: python eval_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import dataclasses  # noqa: E402
import datetime  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import run_config  # noqa: E402


def main(config: run_config.EvalConfig) -> None:
    """Evaluate the runs that the configuration chooses, print the tables, write the report."""
    from evaluation.comparison import (
        add_decode_speed,
        choose_runs,
        evaluate_run,
        group_by_protocol,
    )
    from evaluation.report import (
        COLUMNS,
        DECODE_NOTE,
        NOTE,
        cells,
        decode_sections,
        protocol_line,
        table,
        write_report,
    )
    from tracking.wandb_mirror import WandbMirror
    from training.hardware import pick_device

    device = pick_device(config.device)
    runs = {r.path.name: r for r in choose_runs(config.runs_dir, config.patterns(), print)}
    rows = []
    for name, run in runs.items():
        print(f"evaluating {name}", file=sys.stderr)
        try:
            rows.append(evaluate_run(run, config.split, config.eval, device, print))
        except run_config.USER_ERRORS as error:
            if config.run is not None:
                raise run_config.ConfigError(f"{name}: {error}") from error
            print(f"left out: {name}: {error}", file=sys.stderr)
    if not rows:
        raise run_config.ConfigError("no run could be evaluated; see the lines above")
    groups = group_by_protocol(rows)
    rows = [row for group in groups for row in group]
    for group in groups:
        if config.eval.perplexity:
            print(f"\n{protocol_line(group[0])}")
        print(f"\n{table(group, 'simple')}")
    print(f"\n{NOTE}")
    folder = Path(config.reports_dir) / config.report_name
    command = shlex.join(["python", "eval_model.py", *sys.argv[1:]])
    today = datetime.date.today().isoformat()
    write_report(folder, groups, command, today)  # scoring may have taken hours: kept at once
    if config.eval.decode_speed.batch_sizes and config.eval.decode_speed.contexts:
        print("timing decoding", file=sys.stderr)
        add_decode_speed(rows, runs, config.eval, device, print)
        for part in [*decode_sections(rows, "simple"), DECODE_NOTE]:
            print(f"\n{part}")
        write_report(folder, groups, command, today)
    mirror = WandbMirror(
        config.tracking, folder, config.report_name, dataclasses.asdict(config), print
    )
    mirror.table("comparison", list(COLUMNS), [cells(row) for row in rows])
    points = [{"run_name": row["run_name"], **p} for row in rows for p in row.get("decode", [])]
    if points:
        columns = [key for key in points[0] if key != "ms_by_round"]
        mirror.table("decode", columns, [[point[key] for key in columns] for point in points])
        mirror.image("decode", folder / "decode.png")
    mirror.finish()
    print(f"\n{folder}/report.md, results.json")


if __name__ == "__main__":
    run_config.run("eval", run_config.EvalConfig, main)
