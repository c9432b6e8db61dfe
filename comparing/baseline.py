"""The baseline: the variant that each other one is compared with."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from comparing.recipes import COMPARED, differing_keys
from comparing.variant import Variant
from measuring.errors import EvaluationError
from measuring.kv_cache import cache_bytes_of


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


def choose_baselines(variants: Sequence[Variant], attention: str) -> None:
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
