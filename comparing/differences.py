"""Two variants set against each other: by how much they differ, how surely, and whether alike."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comparing.recipes import unequal
from comparing.statistics import (
    Interval,
    most_influential,
    seed_interval,
    text_interval,
    unpaired_seed_interval,
    verdict,
)
from measuring.rows import EvaluatedRun

NOT_COMPARABLE = "not comparable"
MOST_INFLUENTIAL = 3
"""Documents that are named."""

BySeed = Mapping[int | None, EvaluatedRun]
"""Runs of a variant, each with another seed; one without for a model that kvlab did not train."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Runs of two variants, paired by seed where seeds are in both.

    Args:
        ours: Runs of the one.
        theirs: Runs of the other; where paired in the same order.
        is_paired: Whether they have their seeds in common.
        note: What a reader has to know of the seeds; empty if all are paired.
    """

    ours: list[EvaluatedRun]
    theirs: list[EvaluatedRun]
    is_paired: bool
    note: str

    @property
    def baseline_runs(self) -> dict[str, str]:
        """Names of the paired runs."""
        if not self.is_paired:
            return {}
        return {a.name: b.name for a, b in zip(self.ours, self.theirs, strict=True)}

    @property
    def seeds(self) -> int | None:
        """Seeds on the side that has fewer; None where no side was trained here."""
        counts = [len(some) for some in (self.ours, self.theirs) if not some[0].is_external]
        return min(counts, default=None)

    @property
    def nll(self) -> float:
        """Nats per token that the one has more than the other, mean over seeds."""
        ours, theirs = self._nlls()
        return statistics.fmean(ours) - statistics.fmean(theirs)

    def document_nll(self) -> npt.NDArray[np.float64]:
        """Return by document [n] the nats that the one has more, mean over seeds."""
        return mean_document_nll(self.ours) - mean_document_nll(self.theirs)

    def over_seeds(self) -> Interval | None:
        """Return the interval of the difference over seeds.

        A model that was not trained here is one set of weights: it has no part in the noise.
        """
        ours, theirs = self._nlls()
        external = [some[0].is_external for some in (self.ours, self.theirs)]
        if all(external):
            return None
        if any(external) or self.is_paired:
            pairs = max(len(ours), len(theirs))
            ours, theirs = (some * (pairs // len(some)) for some in (ours, theirs))
            return seed_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        return unpaired_seed_interval(ours, theirs)

    def _nlls(self) -> tuple[list[float], list[float]]:
        ours, theirs = ([run.row["nll"] for run in some] for some in (self.ours, self.theirs))
        return ours, theirs

    def as_row(self) -> dict[str, Any]:
        """Return the difference in nats and in percent of the perplexity, with its verdict."""
        keys = (
            *("delta_nll", "delta_nll_ci95_text", "delta_nll_ci95_seeds", "delta_percent"),
            *("delta_percent_ci95_text", "delta_percent_ci95_seeds", "verdict", "verdict_note"),
        )
        alike = unequal(self.ours[0], self.theirs[0])
        row = dict.fromkeys(keys) | {
            "verdict_note": "",
            "unequal": {key: list(values) for key, values in alike.items()},
        }
        first = self.ours[0].windows
        if first is None:
            return row
        by_text = text_interval(self.document_nll(), first.document_tokens)
        by_seed = self.over_seeds()
        values = (
            *(self.nll, by_text, by_seed),
            *(percent(self.nll), mapped(percent, by_text), mapped(percent, by_seed)),
            NOT_COMPARABLE if alike else verdict(self.nll, [by_text, by_seed], self.seeds),
            self.note,
        )
        return row | dict(zip(keys, values, strict=True))

    def influential(self) -> dict[str, Any]:
        """Return the documents that carry the difference most, and what is left without them."""
        first = self.ours[0].windows
        if first is None:
            return {"influential_documents": [], "delta_percent_without_influential": None}
        tokens = first.document_tokens
        found, rest = most_influential(self.document_nll(), tokens, MOST_INFLUENTIAL)
        return {
            "influential_documents": [
                {
                    "document": one.document,
                    "tokens": tokens[one.document],
                    "delta_percent_without": percent(one.without),
                }
                for one in found
            ],
            "delta_percent_without_influential": None if rest is None else percent(rest),
        }


def difference(ours: BySeed, theirs: BySeed) -> Difference:
    """Set two variants against each other, paired over the seeds that both have, if they have any.

    Args:
        ours: Runs by seed.
        theirs: Runs by seed.
    """
    common = [seed for seed in ours if seed in theirs and seed is not None]
    least, most = sorted((len(ours), len(theirs)))
    if not common:
        external = None in ours or None in theirs
        note = "one model" if external else "single seed" if least == 1 else "other seeds"
        return Difference([*ours.values()], [*theirs.values()], is_paired=False, note=note)
    note = "" if len(common) == most else f"{len(common)} common seeds"
    if len(common) == 1:
        note = "single seed"
    our_runs, their_runs = ([runs[seed] for seed in common] for runs in (ours, theirs))
    return Difference(our_runs, their_runs, is_paired=True, note=note)


def mean_document_nll(runs: Sequence[EvaluatedRun]) -> npt.NDArray[np.float64]:
    """Return the nats of each document [n], mean over runs that were scored."""
    scored = [run.windows.document_nll for run in runs if run.windows]
    nats: npt.NDArray[np.float64] = np.mean(scored, axis=0)
    return nats


def percent(delta_nll: float) -> float:
    """Turn a difference of nats per token into one of perplexity, in percent."""
    return 100 * math.expm1(delta_nll)


def mapped(function: Callable[[float], float], interval: Interval | None) -> Interval | None:
    """Apply an increasing function to both ends of an interval, if there is one."""
    return None if interval is None else (function(interval[0]), function(interval[1]))
