"""How fast variants decode, timed in turns, and from which context on one is faster."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from comparing.variants import Group
from measuring.decode import Decodable, measure_decode
from measuring.kv_cache import estimated_cache_bytes
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from settings.evaluation import EvalSettings


def break_even(
    points: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], batch: int
) -> int | None:
    """Return the context from which on a model decodes faster than the baseline.

    Args:
        points: The model's rows, of `DecodePoint`.
        baseline: The baseline's, measured in the same rounds.
        batch: Which batch.

    Returns:
        The smallest measured context at which, and at all longer ones, the median over rounds of
        its time is below the baseline's in the same round; None if there is none.
    """
    theirs = {p["context"]: p["ms_by_round"] for p in baseline if p["batch"] == batch}
    ours = {p["context"]: p["ms_by_round"] for p in points if p["batch"] == batch}
    found = None
    for context in sorted(ours.keys() & theirs.keys(), reverse=True):
        ratios = [a / b for a, b in zip(ours[context], theirs[context], strict=True)]
        if statistics.median(ratios) >= 1.0:
            break
        found = context
    return found


def add_decode_speed(
    groups: Sequence[Group],
    settings: EvalSettings,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Time the decoding of all variants in turns.

    Weights change no time: models get random ones, and those that are alike are timed once.
    External models have their own.

    Args:
        groups: Results of their variants, and rows of these' runs, get `decode`, a list of
            `DecodePoint` rows; variants also `break_even`: by batch, the context from which on it
            decodes faster than its baseline.
        settings: Batches and contexts.
        device: Where.
        say: Receives one line where the user should know something.
    """
    variants = [variant for group in groups for variant in group.variants]
    models: dict[str, GPT] = {}
    others: dict[str, tuple[Decodable, Callable[[int], float]]] = {}
    timed_as: list[str] = []
    for run in (variant.runs[0] for variant in variants):
        name = next((name for name in models if models[name].config == run.model), run.name)
        if run.decodable is not None:
            others[name] = run.decodable, partial(estimated_cache_bytes, run.row)
        elif name not in models:
            assert run.model is not None
            models[name] = GPT(run.model).to(device).eval()
        timed_as.append(name)
    cache_dtype = cache_dtype_of(settings.cache_dtype)
    found = measure_decode(models, settings.decode_speed, cache_dtype, say, others)
    for variant, name in zip(variants, timed_as, strict=True):
        points = [point.as_row() for point in found[name]]
        variant.result["decode"] = points
        for run in variant.runs:
            run.row["decode"] = points
    for variant in variants:
        base = variant.baseline.result["decode"] if variant.baseline else []
        variant.result["break_even"] = {
            str(batch): break_even(variant.result["decode"], base, batch)
            for batch in settings.decode_speed.batch_sizes
        }
