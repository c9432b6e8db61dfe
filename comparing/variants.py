"""Runs grouped into variants, those of one protocol together, each against its baseline."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparing.baseline import choose_baselines, require_baseline
from comparing.families import families_of, how_sure
from comparing.held_equal import held_and_differing, unranked
from comparing.recipes import differing_keys
from comparing.results import difference_of_run, pairs_of, result_of
from comparing.variant import Variant, kind_of, label_variants
from data.documents import document_names
from measuring.errors import EvaluationError
from measuring.kv_cache import cache_bytes_of
from measuring.rows import EvaluatedRun
from settings.evaluation import DEFAULT_MARGIN


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
        how_sure: In sentences, how intervals over seeds were made and what these seeds can show.
    """

    protocol: dict[str, Any]
    variants: list[Variant]
    held_equal: list[str]
    differs: list[str]
    unranked: list[str]
    pairs: list[dict[str, Any]]
    how_sure: list[str]

    @property
    def runs(self) -> list[EvaluatedRun]:
        """The runs of all variants."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What is reported of each variant."""
        return [variant.result for variant in self.variants]


def compare(
    runs: Sequence[EvaluatedRun],
    baseline: str | None,
    *,
    is_one_study: bool = False,
    margin: float = DEFAULT_MARGIN,
) -> list[Group]:
    """Group runs by protocol card, seeds by variant, and set each against its baseline.

    Rows of the runs get `variant`, its `verdict`, `perplexity_ci95`, `cache_ratio_to_baseline`, and
    where the baseline has a run of the same seed `baseline_run`, `delta_nll` and `delta_nll_ci95`.

    Args:
        runs: At least one.
        baseline: The attention to compare with; None takes mha where there is one.
        is_one_study: Refuse runs with several cards: they were made to be compared. External
            models may have others.
        margin: Relative difference of perplexity up to which two models are equivalent.

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
    return [_group(some, baseline or "mha", margin) for some in cards]


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


def _group(runs: Sequence[EvaluatedRun], baseline: str, margin: float) -> Group:
    variants: list[Variant] = []
    for run in sorted(runs, key=lambda run: (run.is_external, run.row["seed"] or 0, run.name)):
        alike = (v for v in variants if not differing_keys(v.settings, run.settings))
        if run.is_external:
            variants.append(Variant(run.name, [run]))
        elif (variant := next(alike, None)) is None:
            variants.append(Variant(kind_of(run), [run]))
        else:
            variant.runs.append(run)
    label_variants(variants)
    choose_baselines(variants, baseline)
    families = families_of(variants)
    for variant in variants:
        variant.result = result_of(variant, families, margin)
        for run in variant.runs:
            run.row.update(difference_of_run(run, variant))
    variants.sort(key=lambda v: (-cache_bytes_of(v.result), v.label))
    _name_documents(variants)
    pairs = pairs_of(variants, families, margin)
    return Group(
        runs[0].row["protocol"],
        variants,
        *held_and_differing(variants),
        unranked=unranked(variants),
        pairs=pairs,
        how_sure=how_sure(families, pairs, margin),
    )


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
