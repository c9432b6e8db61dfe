"""External models: looked up before runs are scored, then scored on the runs' text."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.prepared import PreparedData
from harness.tasks import Tasks, load_tasks, require_accelerate
from interop.importing.external_model import HuggingFaceModel, find, load, load_into_kvlab
from interop.transformers_model import TransformersModel
from launch.errors import ConfigError
from launch.failures import USER_ERRORS
from launch.schemas import EvalConfig
from launch.terminal import announce
from measuring.external import evaluate_external
from measuring.external_text import Reader, Text, texts_of
from measuring.rows import EvaluatedRun
from measuring.tasks import answers_of
from modeling.gpt import GPT

# What a library raises on a folder that it does not understand.
_OF_LIBRARIES = (
    *(ArithmeticError, AttributeError, ImportError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)


def find_external(names: Sequence[str]) -> list[HuggingFaceModel]:
    """Look at the models that `hf` names; those with one label are shown as they were named."""
    if not names:
        return []
    found = [find(name) for name in names]
    labels = [one.label for one in found]
    return [
        dataclasses.replace(one, label=f"hf:{name}") if labels.count(one.label) > 1 else one
        for one, name in zip(found, names, strict=True)
    ]


def given_text(config: EvalConfig) -> Text | None:
    """Open what `data_folder` names, before models are fetched; None if it names nothing.

    Raises:
        DataError: If it cannot be read, or does not have the split.
    """
    if not config.data_folder:
        return None
    prepared = PreparedData(Path(config.data_folder).expanduser())
    prepared.stream(config.split)
    return Text([(prepared, None)])


def evaluate_external_models(
    config: EvalConfig,
    external: Sequence[HuggingFaceModel],
    given: Text | None,
    runs: Sequence[EvaluatedRun],
    device: torch.device,
    tasks: Tasks | None,
    left_out: list[str],
) -> list[EvaluatedRun]:
    """Evaluate each external model on the text that is given, else on each of the runs.

    One that cannot be is reported, and `left_out` gets a line.

    Raises:
        ConfigError: If nothing could be.
    """
    if not external:
        return []
    texts = texts_of(runs, config.split) if given is None else [given]
    found: list[EvaluatedRun] = []
    for number, source in enumerate(external, start=1):
        announce(f"evaluating {source.label} ({number} of {len(external)})")
        try:
            some = _evaluate_one_external(config, source, texts, device, tasks)
        # Whatever a foreign folder makes a library raise must not lose what was scored before.
        except (*USER_ERRORS, *_OF_LIBRARIES) as error:
            reason = reason_of(source.label, error)
            if not runs and len(external) == 1:
                raise ConfigError(reason) from error
            left_out.append(reason)
            announce(f"left out: {reason}")
            continue
        for note in (note for one in some for note in one.notes):
            announce(note)
        found += some
    if not runs and not found:
        raise ConfigError("no model could be evaluated; see the lines above")
    return found


def _evaluate_one_external(
    config: EvalConfig,
    source: HuggingFaceModel,
    texts: Sequence[Text],
    device: torch.device,
    tasks: Tasks | None,
) -> list[EvaluatedRun]:
    model: GPT | TransformersModel = (
        load_into_kvlab(source, device, config.eval.decode_path)
        if config.hf_modules == "kvlab"
        else load(source, device)
    )
    found = []
    for text in texts:
        reader = Reader(
            name=name_on(source.label, text, texts),
            kind=source.kind,
            tokenizer=source.tokenizer,
            tokenizer_sha256=source.tokenizer_sha256,
            end_of_document=source.end_of_document,
        )
        found.append(evaluate_external(reader, model, text, config.split, config.eval, device))
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
    config: EvalConfig,
    tasks: Tasks,
    source: HuggingFaceModel,
    model: GPT | TransformersModel,
) -> tuple[dict[str, Any], str, list[str]]:
    """Return a row's `tasks`, if there are any, how they came about, and notes."""

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


def name_on(label: str, text: Text, texts: Sequence[Text]) -> str:
    """Name a model, and where there are several texts, which it was scored on."""
    return label if len(texts) == 1 else f"{label} on {text.readings[0][0].folder.name}"


def class_of(found: HuggingFaceModel, config: EvalConfig) -> str:
    """Name the class of a model, and whose modules compute it."""
    if config.hf_modules == "kvlab":
        return f"{found.architecture} in kvlab's modules"
    return found.architecture


def reason_of(name: str, error: BaseException) -> str:
    """Say in one line what is wrong with a run or model, with its name once."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if text.startswith((f"{name}:", f"{name} ")) else f"{name}: {text}"


def load_tasks_of(config: EvalConfig) -> Tasks | None:
    """Find the tasks that `eval.tasks` names, before hours of scoring; None if it names none."""
    asked = config.eval
    if not asked.tasks:
        return None

    if config.external() and config.hf_modules == "transformers":
        require_accelerate()
    announce(f"loading {', '.join(asked.tasks)}")
    folder = None if asked.task_folder is None else Path(asked.task_folder).expanduser()
    return load_tasks(asked.tasks, folder, asked.num_fewshot, asked.task_limit)
