"""Scoring and measuring a finished run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.shards.manifest import SplitCounts, share_of
from data.shards.stream import TokenStream
from measuring.kv_cache import measure_generation_memory, measure_kv_cache, require_closed_form
from measuring.numerics import device_class, trained_with
from measuring.perplexity import Score, score
from measuring.rows import (
    EvaluatedRun,
    ResultRow,
    positions_of,
    protocol_card,
    quality_of,
)
from measuring.runs import LoadedRun, load_run, recorded_settings
from measuring.tasks import TaskScorer, answers_of
from measuring.through_cache import CachedScorer
from measuring.windows import cache_context_for, windows_for
from modeling.accounting import num_parameters
from modeling.attention import attention_config
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from settings.evaluation import EvalSettings
from tracking.configuration import PASSES, flat, sequences_per_step
from tracking.metrics import read_metrics
from tracking.progress import Bar
from tracking.run_folder import RunFolder, without_seed


def evaluate_run(
    run: RunFolder,
    split: str,
    settings: EvalSettings,
    device: torch.device,
    say: Callable[[str], None],
    tasks: TaskScorer | None = None,
) -> EvaluatedRun:
    """Score one run, measure its cache, and run `tasks` on it.

    Raises:
        EvaluationError: If it cannot be loaded or scored.
        RunError: If one of its files cannot be read.
    """
    loaded = load_run(run, device, say, settings.decode_path)
    model, config = loaded.model, loaded.model.config
    stream = loaded.prepared.stream(split)  # refuses a split that is not there
    summary = run.read_summary() or {}
    cache_dtype = cache_dtype_of(settings.cache_dtype)
    cache_context = cache_context_for(settings, config)
    cache = measure_kv_cache(model, settings.cache_batch_size, cache_context, cache_dtype)
    require_closed_form(run.name, cache)
    recorded, curve, sample = recorded_settings(run), _curve(run), run.read_sample()
    windows = _score(run.name, loaded, stream, settings, device) if settings.perplexity else None
    answers, notes = _run_tasks(tasks, run.name, loaded, settings)
    if windows is not None and split == "validation" and not settings.decode:
        recorded_nll = summary.get("validation_nll")
        notes += _unlike_its_summary(run.name, recorded_nll, recorded, settings, model, windows.nll)
    notes += _lost(run.path.name, split, loaded.prepared.splits[split])
    card = protocol_card(
        loaded.prepared,
        split,
        windows_for(settings, config),
        cache_context,
        settings,
        dtype=_name(model.embed_tokens.weight.dtype),
        device=device_class(device),
        intra_document_mask=config.intra_document_mask,
    )
    row = ResultRow(
        run_name=run.path.name,
        attention=config.attention["name"],
        layers=config.layers.name,
        positions=positions_of(config),
        seed=loaded.state["seed"],
        num_parameters=num_parameters(config).total,
        tokens_trained=summary.get("tokens_trained"),
        split=split,
        **quality_of(windows, loaded.prepared.splits[split]),
        **cache.as_row(),
        generation_peak_extra_bytes=measure_generation_memory(
            model, settings.cache_batch_size, config.max_position_embeddings, cache_dtype
        ),
        train_tokens_per_second=summary.get("tokens_per_second"),
        train_peak_memory_bytes=summary.get("peak_memory_bytes"),
        train_wall_seconds=summary.get("wall_seconds"),
        versions=summary.get("versions"),
        git_commit=summary.get("git_commit"),
        reads_whole_text=not loaded.prepared.splits[split].lost_bytes,
        trained_with=trained_with(summary),
        protocol=card if tasks is None else card | {"tasks": tasks.protocol},
        tasks=answers.get("tasks"),
    )
    return EvaluatedRun(
        row.as_dict(),
        config,
        windows,
        _settings(recorded, model),
        curve,
        sample,
        notes,
        prepared=loaded.prepared,
    )


def _run_tasks(
    tasks: TaskScorer | None, name: str, loaded: LoadedRun, settings: EvalSettings
) -> tuple[dict[str, Any], list[str]]:
    """Return a row's `tasks`, if there are any, and notes."""
    if tasks is None:
        return {}, []
    prepared = loaded.prepared
    tokenizer, end = prepared.tokenizer(), prepared.end_of_document_id
    return answers_of(
        lambda: tasks.score(loaded.model, tokenizer, end, settings.batch_size), name, settings
    )


def _score(
    name: str,
    loaded: LoadedRun,
    stream: TokenStream,
    settings: EvalSettings,
    device: torch.device,
) -> Score:
    model = loaded.model
    scorer = CachedScorer(model, cache_dtype_of(settings.cache_dtype)) if settings.decode else model
    context, stride = windows_for(settings, model.config)
    end = loaded.prepared.end_of_document_id
    with Bar(name) as bar:
        watch = bar.count("scoring", "tokens")
        return score(scorer, stream, context, stride, settings.batch_size, device, None, watch, end)


def _unlike_its_summary(
    name: str,
    recorded_nll: Any,
    recorded: dict[str, Any],
    settings: EvalSettings,
    model: GPT,
    nll: float,
) -> list[str]:
    """Say so where a run no longer scores what it scored at its end, in the same windows."""
    context, stride = (recorded.get(f"eval.{key}") for key in ("context", "stride"))
    if type(recorded_nll) is not float or not all(
        type(n) in (int, type(None)) for n in (context, stride)
    ):
        return []
    then = dataclasses.replace(settings, context=context, stride=stride)
    if windows_for(then, model.config) != windows_for(settings, model.config):
        return []
    # Another device, batch or version of PyTorch changes the last bits of each token's likelihood.
    if (
        abs(nll - recorded_nll)
        <= 1000 * torch.finfo(model.embed_tokens.weight.dtype).eps * recorded_nll
    ):
        return []
    return [
        f"{name} scores {nll:.5f} nats per token, but scored {recorded_nll:.5f} at the end of its "
        "training: its weights, its data or the code are not those of then"
    ]


def _lost(name: str, split: str, counts: SplitCounts) -> list[str]:
    """Say why a run is in no table across tokenizers, where its tokenizer loses text."""
    if not counts.lost_bytes:
        return []
    lost = share_of(counts.lost_bytes, counts.utf8_bytes)
    return [
        f"{name}: its tokenizer does not give back {lost} of the bytes of {split}, which "
        "cost it nothing: it is left out of Across tokenizers"
    ]


def _settings(recorded: dict[str, Any], model: GPT) -> dict[str, Any]:
    """Return the recorded configuration, with the model that was trained, complete."""
    recipe = {
        key: value
        for key, value in recorded.items()
        if not key.startswith(("model.", "layers.")) and key not in PASSES
    }
    recipe["begins_with"] = _beginning(recipe.pop("init_from", None))
    recipe.pop("init_sha256", None)
    if (sequences := sequences_per_step(recorded)) is not None:
        recipe["trainer.sequences_per_step"] = sequences
    # By the classes, since a run from before a key does not have it.
    config = model.config
    attention = attention_config(config.attention).settings(config.attention["name"])
    settings = dataclasses.asdict(config) | {"attention": attention}
    layers = settings.pop("layers")  # a group of its own, like that which `recipe` has
    return recipe | flat({"layers": layers, "model": settings})


def _beginning(folder: Any) -> str:
    """Say which weights a run began with: each seed may have a folder of its own, by its name.

    A run from before `init_from` was began with random ones.
    """
    if folder is None:
        return "random weights"
    return without_seed(Path(str(folder)).name) or "a folder"


def _curve(run: RunFolder) -> dict[str, list[float]]:
    """Return the validations during the training: tokens so far, and perplexity."""
    records = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    keys = ("progress/tokens", "validation/perplexity_part")
    points: list[list[Any]] = [[record.get(key) for key in keys] for record in records]
    whole = [point for point in points if all(isinstance(v, int | float) and v > 0 for v in point)]
    return {"tokens": [x for x, _ in whole], "perplexity": [y for _, y in whole]}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
