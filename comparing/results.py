"""What is reported of a variant: its own numbers, and its difference to the baseline."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from comparing.differences import Difference, mapped, mean_document_nll
from comparing.families import Family, noise_of_pair
from comparing.statistics import seed_interval, standard_deviation, text_interval
from comparing.tasks import over_seeds
from comparing.variant import Variant
from measuring.kv_cache import (
    CACHE_KEYS,
    cache_bytes_of,
    cache_context_of,
    has_known_cache,
    known_bytes_of,
)
from measuring.rows import EvaluatedRun
from modeling.accounting import ParameterCount, budget_of


def result_of(variant: Variant, families: Sequence[Family], margin: float) -> dict[str, Any]:
    """Return what is reported of a variant, decoding aside.

    Args:
        variant: With its baseline.
        families: Those of the variants that are compared.
        margin: Relative difference of perplexity up to which two models are equivalent.
    """
    runs = list(variant.by_seed().values())
    rows = [run.row for run in runs]
    first = rows[0]
    costs = {key: [row[key] for row in rows if row[key] is not None] for key in _COSTS}
    return {
        "name": variant.label,
        "attention": first["attention"],
        "layers": None if variant.is_external else variant.layers,
        "positions": first["positions"],
        "runs": [run.name for run in variant.runs],
        "seeds": [row["seed"] for row in rows if row["seed"] is not None],
        "num_parameters": first["num_parameters"],
        "tokens_trained": first["tokens_trained"],
        "budget": _budget(runs[0]),
        **_quality(runs),
        **_against_baseline(variant, runs, families, margin),
        **_cache(runs[0]),
        **{key: _COSTS[key](values) if values else None for key, values in costs.items()},
        "sample": runs[0].sample,
        **({"tasks": tasks} if (tasks := over_seeds(rows)) else {}),
    }


def _cache(run: EvaluatedRun) -> dict[str, Any]:
    """Return the keys of the cache; at a context, too, where a row is older than these keys."""
    found = {key: run.row.get(key) for key in CACHE_KEYS}
    return found | {
        "kv_cache_context": cache_context_of(run.row),
        "kv_cache_bytes_at_context": known_bytes_of(run.row),
        "trained_context": run.model and run.model.max_position_embeddings,
    }


def _budget(run: EvaluatedRun) -> dict[str, Any]:
    """Return where parameters, cache and compute go; None where kvlab has no formula."""
    if run.model is None:
        known = {"total": run.row["num_parameters"]}
        return dict.fromkeys((*_PARTS, "total", *_BUDGET)) | known
    budget = budget_of(run.model, cache_context_of(run.row))
    parameters = dataclasses.asdict(budget.parameters) | {"total": budget.parameters.total}
    costs = {key: getattr(budget, key) for key in _BUDGET}
    if run.row.get("kv_cache_bytes_at_context") is not None:  # in the dtype that was measured
        costs |= {key: run.row[key] for key in _BUDGET if key in CACHE_KEYS}
    return parameters | costs


_PARTS = tuple(field.name for field in dataclasses.fields(ParameterCount))


_BUDGET = (
    *("kv_cache_bytes_per_token", "kv_cache_bytes_at_context", "cache_ratio_to_mha"),
    "training_flops_per_token",
)


_COSTS: dict[str, Callable[[list[float]], float]] = {
    "train_tokens_per_second": statistics.median,
    "train_peak_memory_bytes": max,
    "train_wall_seconds": statistics.median,
}


def _quality(runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """Return nats per token and perplexity, mean over seeds, with both intervals."""
    keys = (
        *("nll", "nll_ci95_text", "perplexity", "perplexity_by_seed", "perplexity_sd"),
        *("perplexity_ci95_text", "perplexity_ci95_seeds", "word_perplexity", "bits_per_byte"),
        "documents_scored",
    )
    scored = runs[0].windows
    if scored is None:
        return dict.fromkeys(keys)
    by_seed = [run.row["nll"] for run in runs]
    perplexities = [run.row["perplexity"] for run in runs]
    nll = statistics.fmean(by_seed)
    words = [run.row["word_perplexity"] for run in runs]
    by_text = text_interval(mean_document_nll(runs), scored.document_tokens)
    values = (
        nll,
        by_text,
        math.exp(nll),
        perplexities,
        standard_deviation(perplexities),
        mapped(math.exp, by_text),
        mapped(math.exp, seed_interval(by_seed)),
        None if None in words else statistics.geometric_mean(words),
        statistics.fmean(run.row["bits_per_byte"] for run in runs),
        sum(tokens > 0 for tokens in scored.document_tokens),
    )
    return dict(zip(keys, values, strict=True))


def _against_baseline(
    variant: Variant, runs: Sequence[EvaluatedRun], families: Sequence[Family], margin: float
) -> dict[str, Any]:
    """Return the difference to the baseline, paired by document."""
    base = variant.baseline
    of_seeds = None
    if base and not variant.is_baseline and (noise := noise_of_pair(variant, base, families)):
        of_seeds = noise.to_baseline(variant.label, base.label)
    found = Difference(variant.by_seed(), (base or variant).by_seed(), of_seeds)
    row = found.as_row(margin) | found.influential()
    nothing: dict[str, Any] = {
        key: [] if type(value) is list else None for key, value in row.items()
    }
    head: dict[str, Any] = {
        "baseline": base.label if base else None,
        "is_baseline": variant.is_baseline,
        "baseline_runs": {},
        "cache_ratio_to_baseline": None,
        **nothing,
        "verdict_note": "",
    }
    if base is None:
        return head
    if variant.is_baseline:
        return head | {"cache_ratio_to_baseline": 1.0, "verdict": "baseline"}
    pair = runs[0].row, base.runs[0].row
    cache = None
    if all(map(has_known_cache, pair)):
        cache = cache_bytes_of(pair[0]) / cache_bytes_of(pair[1])
    return head | {"baseline_runs": found.baseline_runs, "cache_ratio_to_baseline": cache} | row


def pairs_of(
    variants: Sequence[Variant], families: Sequence[Family], margin: float
) -> list[dict[str, Any]]:
    """Return the difference of every two variants that were scored, the smaller cache's less."""
    if variants[0].runs[0].windows is None:
        return []
    rows = []
    for number, theirs in enumerate(variants):
        for ours in variants[number + 1 :]:
            noise = noise_of_pair(ours, theirs, families)
            of_seeds = noise.of_pair(ours.label, theirs.label) if noise else None
            found = Difference(ours.by_seed(), theirs.by_seed(), of_seeds)
            rows.append({"variant": ours.label, "against": theirs.label} | found.as_row(margin))
    return rows


def difference_of_run(run: EvaluatedRun, variant: Variant) -> dict[str, Any]:
    """Return the difference of one run to the baseline's run of its seed, over the text."""
    scored = run.windows
    interval = text_interval(scored.document_nll, scored.document_tokens) if scored else None
    found: dict[str, Any] = {
        "variant": variant.label,
        "verdict": variant.result["verdict"],
        "perplexity_ci95": mapped(math.exp, interval),
        "cache_ratio_to_baseline": variant.result["cache_ratio_to_baseline"],
        **dict.fromkeys(("baseline_run", "delta_nll", "delta_nll_ci95")),
    }
    if variant.baseline is None or variant.is_baseline:
        return found
    other = variant.baseline.by_seed().get(run.row["seed"])
    if other is None:
        return found
    found["baseline_run"] = other.name
    if scored and other.windows:
        found["delta_nll"] = run.row["nll"] - other.row["nll"]
        nats = np.subtract(scored.document_nll, other.windows.document_nll)
        found["delta_nll_ci95"] = text_interval(nats, scored.document_tokens)
    return found
