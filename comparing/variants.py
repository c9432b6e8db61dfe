"""Runs side by side: seeds of a variant together, each variant against its baseline."""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from comparing import numerics
from comparing.differences import (
    COMPARED,
    PARAMETERS_TOLERANCE,
    difference,
    differing_keys,
    mapped,
    mean_document_nll,
    unequal,
)
from comparing.labels import label, shown
from comparing.plain import plain
from comparing.statistics import seed_interval, standard_deviation, text_interval
from comparing.tasks import over_seeds
from data.documents import document_names
from measuring.errors import EvaluationError
from measuring.kv_cache import (
    CACHE_KEYS,
    cache_bytes_of,
    cache_context_of,
    has_known_cache,
    known_bytes_of,
)
from measuring.rows import EvaluatedRun
from modeling.accounting import ParameterCount, budget_of
from modeling.config import LayersConfig
from tracking.configuration import flat

_ARRANGED = "layers."
_ALIKE = flat({"layers": dataclasses.asdict(LayersConfig())})
# Follow from the size of the model.
_DERIVED = re.compile(
    r"model\.(intermediate_size|attention\.(hidden_size|num_attention_heads|\w*head_dim))"
)


@dataclasses.dataclass
class Variant:
    """All runs of one configuration, which differ in their seed.

    Args:
        label: Unique in its group.
        runs: By seed; of several with one seed, the first by name counts.
        result: What is reported of it: see `docs/notation.md`.
        baseline: What it is compared with; itself if it is one, None if there is none.
    """

    label: str
    runs: list[EvaluatedRun]
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    baseline: "Variant | None" = None

    @property
    def is_baseline(self) -> bool:
        """Whether it is what others are compared with."""
        return self.baseline is self

    @property
    def attention(self) -> str:
        """The attention's registered name."""
        return str(self.runs[0].row["attention"])

    @property
    def is_external(self) -> bool:
        """Whether it is a model that kvlab did not train."""
        return self.runs[0].is_external

    @property
    def layers(self) -> str:
        """The arrangement of its layers in words; "uniform" where all are alike."""
        return arrangement_of(self.settings)

    @property
    def ignored(self) -> list[str]:
        """Names of runs that repeat a seed."""
        first = self.by_seed()
        return [run.name for run in self.runs if first[run.row["seed"]] is not run]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration that its runs share, but for the seed."""
        return self.runs[0].settings

    def by_seed(self) -> dict[int | None, EvaluatedRun]:
        """Return the runs by seed, None for an external model; of several the first."""
        first: dict[int | None, EvaluatedRun] = {}
        for run in self.runs:
            first.setdefault(run.row["seed"], run)
        return first


@dataclasses.dataclass
class Group:
    """Variants whose numbers may share a table: those with one protocol card.

    Args:
        protocol: The card.
        variants: From the largest KV cache to the smallest.
        held_equal: In words, what all of them have in common.
        differs: In words, what else than attention, MLP width and seed differs.
        unranked: In words, what of it keeps the variants from being ranked; empty if nothing does.
        pairs: The difference of every two variants, as rows of pairs.json.
    """

    protocol: dict[str, Any]
    variants: list[Variant]
    held_equal: list[str]
    differs: list[str]
    unranked: list[str]
    pairs: list[dict[str, Any]]

    @property
    def runs(self) -> list[EvaluatedRun]:
        """The runs of all variants."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What is reported of each variant."""
        return [variant.result for variant in self.variants]


def compare(
    runs: Sequence[EvaluatedRun], baseline: str | None, *, is_one_study: bool = False
) -> list[Group]:
    """Group runs by protocol card, seeds by variant, and set each against its baseline.

    Rows of the runs get `variant`, its `verdict`, `perplexity_ci95`, `cache_ratio_to_baseline`, and
    where the baseline has a run of the same seed `baseline_run`, `delta_nll` and `delta_nll_ci95`.

    Args:
        runs: At least one.
        baseline: The attention to compare with; None takes mha where there is one.
        is_one_study: Refuse runs with several cards: they were made to be compared. External
            models may have others.

    Raises:
        EvaluationError: If a baseline that was asked for is not there, or has another protocol
            card, or if the cards of one study differ; the message names the fields.
    """
    cards: list[list[EvaluatedRun]] = []
    for run in runs:
        alike = (some for some in cards if some[0].row["protocol"] == run.row["protocol"])
        if (some := next(alike, None)) is None:
            cards.append([run])
        else:
            some.append(run)
    if is_one_study:
        require_one_protocol([run for run in runs if not run.is_external])
    if baseline is not None:
        _require_baseline(cards, baseline)
    return [_group(some, baseline or "mha") for some in cards]


def require_one_protocol(runs: Sequence[EvaluatedRun]) -> None:
    """Refuse runs whose numbers do not belong into one table.

    Raises:
        EvaluationError: Naming each field of the protocol cards that differs.
    """
    for run in runs[1:]:
        first = runs[0]
        if fields := differing_fields(first.row["protocol"], run.row["protocol"]):
            raise EvaluationError(
                f"{first.name} and {run.name} cannot share a table: their protocol cards differ in "
                f"{fields}; choose runs that agree with run=..., or evaluate them alike"
            )


def differing_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say in which fields two protocol cards differ, with both values; empty if in none."""
    return ", ".join(
        f"{key} ({_short(one.get(key))}, {_short(other.get(key))})"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{40,}", text) else text


def require_baseline(attentions: Iterable[str], baseline: str | None) -> None:
    """Refuse a baseline that is the attention of no run.

    Raises:
        EvaluationError: Naming those that there are.
    """
    names = sorted(set(attentions))
    if baseline is not None and baseline not in names:
        raise EvaluationError(
            f"eval.baseline={baseline} is the attention of none of these runs; there are: "
            f"{', '.join(names)}"
        )


def _require_baseline(cards: Sequence[Sequence[EvaluatedRun]], baseline: str) -> None:
    require_baseline((run.row["attention"] for some in cards for run in some), baseline)
    has = [some for some in cards if any(run.row["attention"] == baseline for run in some)]
    for some in cards:
        if some not in has and not all(run.is_external for run in some):
            ours, theirs = some[0], next(r for r in has[0] if r.row["attention"] == baseline)
            fields = differing_fields(ours.row["protocol"], theirs.row["protocol"])
            raise EvaluationError(
                f"{ours.name} has no baseline: the protocol card of {theirs.name} differs in "
                f"{fields}; choose runs that agree with run=..., or leave eval.baseline out"
            )


def _group(runs: Sequence[EvaluatedRun], baseline: str) -> Group:
    variants: list[Variant] = []
    for run in sorted(runs, key=lambda run: (run.is_external, run.row["seed"] or 0, run.name)):
        alike = (v for v in variants if not differing_keys(v.settings, run.settings))
        if run.is_external:
            variants.append(Variant(run.name, [run]))
        elif (variant := next(alike, None)) is None:
            variants.append(Variant(_kind(run), [run]))
        else:
            variant.runs.append(run)
    _label(variants)
    _choose_baselines(variants, baseline)
    for variant in variants:
        variant.result = _measure(variant)
        for run in variant.runs:
            run.row.update(_run_against_baseline(run, variant))
    variants.sort(key=lambda v: (-cache_bytes_of(v.result), v.label))
    _name_documents(variants)
    return Group(
        runs[0].row["protocol"],
        variants,
        *_held_and_differing(variants),
        unranked=_unranked(variants),
        pairs=_pairs(variants),
    )


def arrangement_of(settings: Mapping[str, Any]) -> str:
    """Name an arrangement of layers by its label, or by its settings where it has none."""
    name = str(settings.get(f"{_ARRANGED}name", "uniform"))
    if name != "uniform":
        return name
    differing = (key for key in _ALIKE if settings.get(key, _ALIKE[key]) != _ALIKE[key])
    parts = [f"{key.rpartition('.')[2]}={settings[key]}" for key in differing]
    return ", ".join(parts).replace(" ", "") or name


def _kind(run: EvaluatedRun) -> str:
    """Name a run's attention, and the arrangement of its layers unless they are alike."""
    layers = arrangement_of(run.settings)
    return run.row["attention"] if layers == "uniform" else f"{run.row['attention']} {layers}"


def _label(variants: Sequence[Variant]) -> None:
    """Name variants after attention and arrangement, and where that is not enough by the rest."""
    trained = [variant for variant in variants if not variant.is_external]
    for kind in {variant.label for variant in trained}:
        alike = [variant for variant in trained if variant.label == kind]
        if len(alike) == 1:
            continue
        keys = {key for v in alike for key in differing_keys(alike[0].settings, v.settings)}
        positions = [variant.runs[0].row["positions"] for variant in alike]
        told = sorted(key for key in keys if not _DERIVED.fullmatch(key))
        if len({variant.settings.get("model.name") for variant in alike}) > 1:
            told = [key for key in told if not key.startswith("model.")]
            # A model that began with a folder is named after it.
            told = told if "begins_with" in told else ["model.name", *told]
        if len(set(positions)) > 1:
            told = [key for key in told if key != "model.position_embedding"]
        for variant, where in zip(alike, positions, strict=True):
            parts = [f"{key.rsplit('.', 1)[-1]}={plain(variant.settings.get(key))}" for key in told]
            if len(set(positions)) > 1:
                parts.insert(0, f"{where} positions")
            variant.label = " ".join([kind, ", ".join(parts[:3])]).strip()
    labels = [variant.label for variant in variants]
    for variant in variants:
        if labels.count(variant.label) > 1:
            variant.label = variant.runs[0].name


def _choose_baselines(variants: Sequence[Variant], attention: str) -> None:
    """Give each variant the one of that attention that differs least in everything else."""
    candidates = [variant for variant in variants if variant.attention == attention]
    # Arrangements are compared, so layers that are alike are the baseline where there are some.
    candidates = [v for v in candidates if v.layers == "uniform"] or candidates

    def distance(variant: Variant, candidate: Variant) -> tuple[Any, ...]:
        keys = differing_keys(variant.settings, candidate.settings)
        ours, theirs = variant.runs[0].row, candidate.runs[0].row
        parameters = abs(math.log(ours["num_parameters"] / theirs["num_parameters"]))
        cache = abs(math.log(cache_bytes_of(ours) / cache_bytes_of(theirs)))
        return (
            sum(not COMPARED.fullmatch(key) for key in keys),
            candidate.runs[0].row["positions"] != "RoPE",
            int(100 * parameters),  # matched ones differ by less than a percent
            round(cache, 6),
            -len(variant.by_seed().keys() & candidate.by_seed().keys()),
            candidate.label,
        )

    for variant in variants:
        variant.baseline = min(
            candidates, key=lambda candidate: distance(variant, candidate), default=None
        )


def _measure(variant: Variant) -> dict[str, Any]:
    """Return what is reported of a variant, decoding aside."""
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
        **_against_baseline(variant, runs),
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


def _against_baseline(variant: Variant, runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """Return the difference to the baseline, paired by document and by seed."""
    base = variant.baseline
    found = difference(variant.by_seed(), (base or variant).by_seed())
    row = found.as_row() | found.influential()
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
    pair = runs[0].row, found.theirs[0].row
    cache = None
    if all(map(has_known_cache, pair)):
        cache = cache_bytes_of(pair[0]) / cache_bytes_of(pair[1])
    return head | {"baseline_runs": found.baseline_runs, "cache_ratio_to_baseline": cache} | row


def _pairs(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return the difference of every two variants that were scored, the smaller cache's less."""
    if variants[0].runs[0].windows is None:
        return []
    return [
        {"variant": ours.label, "against": theirs.label}
        | difference(ours.by_seed(), theirs.by_seed()).as_row()
        for number, theirs in enumerate(variants)
        for ours in variants[number + 1 :]
    ]


def _unranked(variants: Sequence[Variant]) -> list[str]:
    """Say what differs between variants that has to be equal where they are ranked."""
    found: dict[str, dict[str, None]] = {}  # values by what they are of, each once
    trained = [variant for variant in variants if not variant.is_external]
    for number, one in enumerate(trained):
        for other in trained[number + 1 :]:
            for key, values in unequal(one.runs[0], other.runs[0]).items():
                texts = (plain(shown(value)) for value in values)
                found.setdefault(key, {}).update(dict.fromkeys(texts))
    said = [f"{plain(label(key), 120)} ({' and '.join(values)})" for key, values in found.items()]
    external = [plain(variant.label) for variant in variants if variant.is_external]
    if external and len(variants) > 1:
        said.append(f"training, which is not known of {', '.join(external)}")
    return said


def _name_documents(variants: Sequence[Variant]) -> None:
    """Give each influential document its name; its number from 1 where the text is not at hand."""
    rows = [row for variant in variants for row in variant.result["influential_documents"]]
    run = variants[0].runs[0]
    names = (
        document_names(run.prepared, run.row["split"], {row["document"] for row in rows})
        if run.prepared and rows
        else {}
    )
    for row in rows:
        row["name"] = names.get(row["document"], f"document {row['document'] + 1}")


def _run_against_baseline(run: EvaluatedRun, variant: Variant) -> dict[str, Any]:
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


_HELD = {
    "data.name": "corpus {}",
    "model.num_hidden_layers": "{} layers",
    "model.hidden_size": "width {}",
    "model.num_attention_heads": "{} query heads",
    "trainer.max_tokens": "{} training tokens asked for",
    "trainer.sequences_per_step": "{} sequences a step",
    "optim.name": "optimizer {}",
    "optim.learning_rate": "learning rate {}",
    "schedule.name": "{} schedule",
}


def _held_and_differing(variants: Sequence[Variant]) -> tuple[list[str], list[str]]:
    """Say what variants have in common, and in what they differ that is not compared."""
    trained = [variant for variant in variants if not variant.is_external]
    settings = [variant.settings for variant in trained]
    held = [
        text.format(plain(shown(settings[0][key])))
        for key, text in _HELD.items()
        if settings
        and key in settings[0]
        and all(other.get(key) == settings[0][key] for other in settings)
    ]
    keys = {key for other in settings[1:] for key in differing_keys(settings[0], other)}
    differs = [_values(key, trained) for key in sorted(keys) if not COMPARED.fullmatch(key)]
    if trained and not any(key.startswith(_ARRANGED) for key in keys):
        layers = trained[0].layers
        held += [] if layers == "uniform" else [f"layers {plain(layers)}"]
    rows = {plain(v.label): [run.row for run in v.by_seed().values()] for v in trained}
    alike, unlike = numerics.compared(rows)
    held += alike
    differs += unlike
    if external := [plain(variant.label) for variant in variants if variant.is_external]:
        differs.append(f"the training, which kvlab does not know: {', '.join(external)}")
    counts = [variant.result["num_parameters"] for variant in variants]
    spread = max(counts) / min(counts) - 1
    if spread > PARAMETERS_TOLERANCE:
        differs.append(f"parameters: from {min(counts):,} to {max(counts):,}")
    elif len(variants) > 1:
        held.append(f"parameters within {100 * spread:.2g} %")
    seeds = [variant.result["seeds"] for variant in variants]
    if not differs and len(variants) > 1 and seeds == seeds[:1] * len(seeds):
        held.append("seeds, which give the order of the data, and every other setting")
    if any(key.startswith(_ARRANGED) for key in keys):  # compared, but a name says too little
        differs.insert(0, _arrangements(trained))
    return held, differs


def _arrangements(variants: Sequence[Variant]) -> str:
    """Say how the layers of variants are arranged, each arrangement once."""
    having: dict[str, list[str]] = {}
    for variant in variants:
        given = {k.removeprefix(_ARRANGED): v for k, v in variant.settings.items() if k in _ALIKE}
        usual = {key.removeprefix(_ARRANGED): value for key, value in _ALIKE.items()}
        changed = [f"{k}={plain(shown(v))}" for k, v in given.items() if v != usual[k]]
        text = ", ".join(part for part in changed if not part.startswith("name="))
        name = plain(given.get("name", "uniform"))
        having.setdefault(f"{name} with {text}" if text else name, []).append(variant.label)
    listed = "; ".join(f"{text} ({', '.join(labels)})" for text, labels in having.items())
    return f"arrangement of the layers (layers): {listed}"


def _values(key: str, variants: Sequence[Variant]) -> str:
    """Say which values a setting has, and which variants have each."""
    having: dict[str, list[str]] = {}
    for variant in variants:
        having.setdefault(plain(shown(variant.settings.get(key))), []).append(variant.label)
    listed = (f"{value} ({', '.join(labels)})" for value, labels in having.items())
    return f"{plain(label(key), 120)}: {', '.join(listed)}"
