"""Compare finished runs by perplexity, KV cache and speed: python eval_model.py --help."""

import ensure_environment

ensure_environment.ensure()

import dataclasses  # noqa: E402
import datetime  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import launch.run  # noqa: E402
from launch import schemas  # noqa: E402
from launch.errors import ConfigError  # noqa: E402
from launch.failures import USER_ERRORS  # noqa: E402
from launch.runs import located, require_study  # noqa: E402
from launch.terminal import say  # noqa: E402

if TYPE_CHECKING:
    import torch

    from comparing.variants import Group
    from interop.harness import Tasks
    from interop.hugging_face import HuggingFaceModel, TransformersModel
    from measuring.external import Text
    from measuring.rows import EvaluatedRun
    from modeling.gpt import GPT


# What a library raises on a folder that it does not understand.
_OF_LIBRARIES = (
    *(ArithmeticError, AttributeError, ImportError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)


def main(config: schemas.EvalConfig) -> None:
    """Evaluate the runs that the configuration chooses, print the tables, write the report."""
    from comparing.decode_speed import add_decode_speed
    from comparing.variants import compare, require_baseline
    from reporting.report import new_report, require_writable, update_report
    from reporting.tables import DECODE_NOTE, decode_sections
    from training.machine.hardware import pick_device

    device = pick_device(config.device)
    started = datetime.datetime.now(datetime.UTC)
    require_writable(Path(config.reports_dir))  # before hours of scoring
    given = _given_text(config)
    tasks = _load_tasks(config)
    # By its name, and its files fetched, before hours of scoring.
    external = _find_external(config.external())
    evaluated: list[EvaluatedRun] = []
    left_out: list[str] = []
    if given is None:
        evaluated, left_out = _evaluate(config, external, device, tasks)
    else:
        require_baseline([found.kind for found in external], config.eval.baseline)
    evaluated += _evaluate_external(config, external, given, evaluated, device, tasks, left_out)
    groups = compare(evaluated, config.eval.baseline, is_one_study=config.study is not None)
    for variant in (variant for group in groups for variant in group.variants):
        for name in variant.ignored:
            left_out.append(f"{name} repeats a seed of {variant.label}")
            _warn(f"left out: {left_out[-1]}")
    facts = _facts(evaluated, device, started)
    if external:
        loaded = "; ".join(
            f"{found.label}: {found.described}, {_class(found, config)}" for found in external
        )
        facts["External models"] = loaded
    if left_out:
        facts["Left out"] = "; ".join(left_out)
    if notes := [note for run in evaluated for note in run.notes]:
        facts["Notes"] = "; ".join(notes)
    # Scoring may have taken hours: kept at once.
    folder = new_report(Path(config.reports_dir), config.name_of_report, groups, facts, _warn)
    _print_tables(groups)
    if config.eval.decode_speed.batch_sizes and config.eval.decode_speed.contexts:
        _warn("timing decoding")
        add_decode_speed(groups, config.eval, device, say)
        tables = [part for group in groups for part in decode_sections(group.results, "simple")]
        for part in [*tables, DECODE_NOTE]:
            say(f"\n{part}")
        update_report(folder, groups, facts)
    _mirror(config, folder, groups)
    say(f"\n{folder}/report.html, report.md, results.json, results.csv, table.tex, figures/")


def _load_tasks(config: schemas.EvalConfig) -> "Tasks | None":
    """Find the tasks that `eval.tasks` names, before hours of scoring; None if it names none."""
    asked = config.eval
    if not asked.tasks:
        return None
    from interop.harness import load_tasks, require_accelerate

    if config.external() and config.hf_modules == "transformers":
        require_accelerate()
    _warn(f"loading {', '.join(asked.tasks)}")
    folder = None if asked.task_folder is None else Path(asked.task_folder).expanduser()
    return load_tasks(asked.tasks, folder, asked.num_fewshot, asked.task_limit)


def _evaluate(
    config: schemas.EvalConfig,
    external: "Sequence[HuggingFaceModel]",
    device: "torch.device",
    tasks: "Tasks | None",
) -> "tuple[list[EvaluatedRun], list[str]]":
    """Evaluate the chosen runs; where none was named, one that cannot be is reported and left out.

    Returns:
        What was found, and a line for each run that was left out.

    Raises:
        ConfigError: If a run that was named cannot be evaluated, or none could.
        EvaluationError: If there is no run, or none of the baseline.
    """
    from comparing.variants import require_baseline
    from measuring.errors import EvaluationError
    from measuring.evaluate import evaluate_run
    from measuring.runs import choose_runs
    from tracking.failures import is_out_of_memory

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
            "prepared one (python -m data.prepare)"
        ) from error
    # By their summaries, before hours of scoring.
    attentions = [str((run.read_summary() or {}).get("attention")) for run in runs]
    require_baseline([*attentions, *(found.kind for found in external)], config.eval.baseline)
    for line in left_out:
        _warn(f"left out: {line}")
    for number, run in enumerate(runs, start=1):
        _warn(f"evaluating {run.name} ({number} of {len(runs)})")
        try:
            found.append(evaluate_run(run, config.split, config.eval, device, say, tasks))
        except (*USER_ERRORS, MemoryError, RuntimeError) as error:
            is_users = isinstance(error, USER_ERRORS)
            if not is_users and (config.run is not None or not is_out_of_memory(error)):
                raise
            if config.run is not None:
                raise ConfigError(_of(run.name, error)) from error
            left_out.append(_of(run.name, error))
            _warn(f"left out: {left_out[-1]}")
            continue
        for note in found[-1].notes:
            _warn(note)
    if not found:
        raise ConfigError("no run could be evaluated; see the lines above")
    return found, left_out


def _of(name: str, error: BaseException) -> str:
    """Say in one line what is wrong with a run or model, with its name once."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if text.startswith((f"{name}:", f"{name} ")) else f"{name}: {text}"


def _find_external(names: "Sequence[str]") -> "list[HuggingFaceModel]":
    """Look at the models that `hf` names; those with one label are shown as they were named."""
    if not names:
        return []
    from interop.hugging_face import find

    found = [find(name) for name in names]
    labels = [one.label for one in found]
    return [
        dataclasses.replace(one, label=f"hf:{name}") if labels.count(one.label) > 1 else one
        for one, name in zip(found, names, strict=True)
    ]


def _evaluate_external(
    config: schemas.EvalConfig,
    external: "Sequence[HuggingFaceModel]",
    given: "Text | None",
    runs: "Sequence[EvaluatedRun]",
    device: "torch.device",
    tasks: "Tasks | None",
    left_out: list[str],
) -> "list[EvaluatedRun]":
    """Evaluate each external model on the text that is given, else on each of the runs.

    One that cannot be is reported, and `left_out` gets a line.

    Raises:
        ConfigError: If nothing could be.
    """
    from measuring.external import texts_of

    if not external:
        return []
    texts = texts_of(runs, config.split) if given is None else [given]
    found: list[EvaluatedRun] = []
    for number, source in enumerate(external, start=1):
        _warn(f"evaluating {source.label} ({number} of {len(external)})")
        try:
            some = _evaluate_one_external(config, source, texts, device, tasks)
        # Whatever a foreign folder makes a library raise must not lose what was scored before.
        except (*USER_ERRORS, *_OF_LIBRARIES) as error:
            reason = _of(source.label, error)
            if not runs and len(external) == 1:
                raise ConfigError(reason) from error
            left_out.append(reason)
            _warn(f"left out: {reason}")
            continue
        for note in (note for one in some for note in one.notes):
            _warn(note)
        found += some
    if not runs and not found:
        raise ConfigError("no model could be evaluated; see the lines above")
    return found


def _evaluate_one_external(
    config: schemas.EvalConfig,
    source: "HuggingFaceModel",
    texts: "Sequence[Text]",
    device: "torch.device",
    tasks: "Tasks | None",
) -> "list[EvaluatedRun]":
    from interop.hugging_face import load, load_into_kvlab
    from measuring.external import Origin, evaluate_external

    model: GPT | TransformersModel = (
        load_into_kvlab(source, device, config.eval.decode_path)
        if config.hf_modules == "kvlab"
        else load(source, device)
    )
    found = []
    for text in texts:
        origin = Origin(
            name=name_on(source.label, text, texts),
            kind=source.kind,
            tokenizer=source.tokenizer,
            tokenizer_sha256=source.tokenizer_sha256,
            end_of_document=source.end_of_document,
        )
        found.append(evaluate_external(origin, model, text, config.split, config.eval, device))
    if tasks is None:
        return found
    answers, protocol, notes = _answers(config, tasks, source, model)
    return [
        dataclasses.replace(
            one,
            row=one.row | {"protocol": one.row["protocol"] | {"tasks": protocol}} | answers,
            notes=[*one.notes, *notes],
        )
        for one in found
    ]


def _answers(
    config: schemas.EvalConfig,
    tasks: "Tasks",
    source: "HuggingFaceModel",
    model: "GPT | TransformersModel",
) -> "tuple[dict[str, Any], str, list[str]]":
    """Return a row's `tasks`, if there are any, how they came about, and notes."""
    from measuring.tasks import answers_of
    from modeling.gpt import GPT

    def ask() -> tuple[dict[str, dict[str, Any]], list[str]]:
        if isinstance(model, GPT):
            end = source.tokenizer.token_to_id(source.end_of_document)
            assert end is not None  # `find` looked
            found, notes = tasks.score(model, source.tokenizer, end, config.eval.batch_size)
        else:
            tokenizer = source.tokenizer_of_transformers()
            found, notes = tasks.score_pretrained(model.model, tokenizer, config.eval.batch_size)
        return found, [f"{source.label}: {note}" for note in notes]

    protocol = tasks.protocol if isinstance(model, GPT) else tasks.protocol_of_transformers
    answers, notes = answers_of(ask, source.label, config.eval)
    return answers, protocol, notes


def name_on(label: str, text: "Text", texts: "Sequence[Text]") -> str:
    """Name a model, and where there are several texts, which it was scored on."""
    return label if len(texts) == 1 else f"{label} on {text.readings[0][0].folder.name}"


def _given_text(config: schemas.EvalConfig) -> "Text | None":
    """Open what `data_folder` names, before models are fetched; None if it names nothing.

    Raises:
        DataError: If it cannot be read, or does not have the split.
    """
    from data.prepared import PreparedData
    from measuring.external import Text

    if not config.data_folder:
        return None
    prepared = PreparedData(Path(config.data_folder).expanduser())
    prepared.stream(config.split)
    return Text([(prepared, None)])


def _class(found: "HuggingFaceModel", config: schemas.EvalConfig) -> str:
    if config.hf_modules == "kvlab":
        return f"{found.architecture} in kvlab's modules"
    return found.architecture


def _warn(line: str) -> None:
    say(line, file=sys.stderr)


def _print_tables(groups: "Sequence[Group]") -> None:
    from comparing.across_tokenizers import ACROSS_NOTE, ACROSS_TITLE, across_tokenizers
    from comparing.variants import differing_fields
    from reporting.headline import headline
    from reporting.tables import (
        MOST_PAIRS_PRINTED,
        across_table,
        note,
        pair_table,
        protocol_line,
        table,
        task_sections,
    )

    for group in groups:
        if group is not groups[0]:
            fields = differing_fields(groups[0].protocol, group.protocol)
            say(f"\nIn a table of their own, since their protocol cards differ in {fields}:")
        if group.runs[0].windows is not None:
            say(f"\n{protocol_line(group.runs[0].row)}")
        say(f"\n{table(group.results, 'simple')}")
        for part in task_sections(group.results, group.protocol, "simple"):
            say(f"\n{part}")
        for difference in group.differs:
            say(f"\nNot equal, apart from the attention: {difference}")
        if 1 < len(group.pairs) <= MOST_PAIRS_PRINTED:
            say(f"\n{pair_table(group.pairs, 'simple')}")
        if sentences := headline(group.results, group.unranked):
            say(f"\n{sentences}")
    say(f"\n{note([result for group in groups for result in group.results])}")
    for found in across_tokenizers(groups):
        text = f"{found['corpus']}, {found['split']} split, {found['utf8_bytes']:,} bytes"
        say(f"\n{ACROSS_TITLE}; {text}\n\n{across_table(found['variants'], 'simple')}")
        say(f"\n{ACROSS_NOTE}")


def _facts(
    runs: "Sequence[EvaluatedRun]", device: "torch.device", started: datetime.datetime
) -> dict[str, str]:
    """Return what a report says of how it came about."""
    from comparing.numerics import threads
    from measuring.machine import describe_hardware
    from training.endurance.provenance import git_commit, versions

    trained = [run.row["versions"] or {} for run in runs if not run.is_external]
    commits = sorted({str(run.row["git_commit"]) for run in runs if run.row["git_commit"]})
    facts = {
        "Command": shlex.join(["python", "eval_model.py", *sys.argv[1:]]),
        "Date": started.isoformat(timespec="minutes"),
        "Hardware": describe_hardware(device),
        "Evaluated with": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Evaluated at commit": git_commit(schemas.ROOT) or "not in a repository",
    }
    if trained:
        facts["Trained at commit"] = ", ".join(commits) or "not recorded"
        rows = [run.row for run in runs if not run.is_external]
        facts["Threads of the training"] = threads(rows)
    if any(found != versions() for found in trained):
        described = {", ".join(f"{n} {v}" for n, v in found.items()) for found in trained if found}
        facts["Trained with"] = "; ".join(sorted(described)) or "not recorded"
    return facts


def _mirror(config: schemas.EvalConfig, folder: Path, groups: "Sequence[Group]") -> None:
    """Send tables and plots to wandb."""
    from reporting.tables import RUN_COLUMNS, VARIANT_COLUMNS
    from reporting.task_cells import TASK_COLUMNS, task_rows
    from tracking.wandb_mirror import WandbMirror

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


if __name__ == "__main__":
    launch.run.run("eval", schemas.EvalConfig, main)
