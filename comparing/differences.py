"""Two variants set against each other: by how much they differ, how surely, and whether alike."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comparing.noise import SeedDifference
from comparing.recipes import unequal
from comparing.statistics import (
    FEWEST_SEEDS,
    NOT_COMPARABLE,
    TOO_FEW_SEEDS,
    UNRESOLVED,
    Interval,
    most_influential,
    seed_interval,
    text_interval,
    unpaired_seed_interval,
    verdict,
)
from measuring.rows import EvaluatedRun

MOST_INFLUENTIAL = 3
"""Documents that are named."""

BySeed = Mapping[int | None, EvaluatedRun]
"""Runs of a variant, each with another seed; one without for a model that kvlab did not train."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Runs of two variants.

    Args:
        ours: Runs of the one, by seed.
        theirs: Runs of the other, by seed.
        of_seeds: What their seeds say, with the noise of all variants; None where nothing is known
            of it, or one of the two was not trained here.
    """

    ours: BySeed
    theirs: BySeed
    of_seeds: SeedDifference | None = None

    @property
    def is_external(self) -> bool:
        """Whether one of the two was not trained here."""
        return None in self.ours or None in self.theirs

    @property
    def common_seeds(self) -> list[int]:
        """Seeds that both have."""
        return [seed for seed in self.ours if seed in self.theirs and seed is not None]

    @property
    def baseline_runs(self) -> dict[str, str]:
        """Names of the runs with the same seed."""
        return {self.ours[seed].name: self.theirs[seed].name for seed in self.common_seeds}

    @property
    def fewest_seeds(self) -> int | None:
        """Seeds on the side that has fewer; None where no side was trained here."""
        counts = [len(some) for some in (self.ours, self.theirs) if None not in some]
        return min(counts, default=None)

    @property
    def note(self) -> str:
        """What a reader has to know of the seeds; empty if both have several, and as many."""
        ours, theirs = len(self.ours), len(self.theirs)
        if self.is_external:
            return "one model"
        if min(ours, theirs) == 1:
            return "single seed"
        if min(ours, theirs) >= FEWEST_SEEDS and self.of_seeds is None:
            return "no spread"
        return "" if ours == theirs else f"{ours} against {theirs} seeds"

    @property
    def nll(self) -> float:
        """Nats per token that the one has more than the other, mean over seeds."""
        ours, theirs = self._nlls()
        return statistics.fmean(ours) - statistics.fmean(theirs)

    def document_nll(self) -> npt.NDArray[np.float64]:
        """Return by document [n] the nats that the one has more, mean over seeds."""
        ours, theirs = (mean_document_nll([*some.values()]) for some in (self.ours, self.theirs))
        return ours - theirs

    def alone(self) -> Interval | None:
        """Return Student's t interval of this comparison alone, from its own runs.

        Paired by seed over those that both have, else Welch's. A model that was not trained here
        is one set of weights: it has no part in the noise.
        """
        ours, theirs = self._nlls()
        if None in self.ours and None in self.theirs:
            return None
        if self.is_external:
            return seed_interval([a - b for a in ours for b in theirs])
        if common := self.common_seeds:
            pairs = ((self.ours[seed], self.theirs[seed]) for seed in common)
            return seed_interval([a.row["nll"] - b.row["nll"] for a, b in pairs])
        return unpaired_seed_interval(ours, theirs)

    def _nlls(self) -> tuple[list[float], list[float]]:
        ours, theirs = ([r.row["nll"] for r in some.values()] for some in (self.ours, self.theirs))
        return ours, theirs

    def as_row(self, margin: float) -> dict[str, Any]:
        """Return the difference in nats and in percent of the perplexity, with its verdict.

        Args:
            margin: Relative difference of perplexity up to which two models are equivalent.
        """
        intervals = ("ci95_text", "ci95_seeds", "ci95_alone")
        keys = [f"{what}_{each}" for what in ("delta_nll", "delta_percent") for each in intervals]
        first, other = (next(iter(some.values())) for some in (self.ours, self.theirs))
        row = dict.fromkeys(
            [
                *("delta_nll", "delta_percent", *keys, "verdict"),
                *("comparison_method", "minimum_detectable_nll", "minimum_detectable_percent"),
                "seeds_to_resolve",
            ]
        ) | {
            "verdict_note": "",
            "unequal": {key: list(values) for key, values in unequal(first, other).items()},
        }
        if first.windows is None:
            return row
        by_text = text_interval(self.document_nll(), first.windows.document_tokens)
        alone, seeds = self.alone(), self.of_seeds
        by_seeds = alone if self.is_external or row["unequal"] else None
        if seeds:
            by_seeds = seeds.interval
        found = {"ci95_text": by_text, "ci95_seeds": by_seeds, "ci95_alone": alone}
        row |= {"delta_nll": self.nll, "delta_percent": percent(self.nll)}
        for key, interval in found.items():
            row[f"delta_nll_{key}"] = interval
            row[f"delta_percent_{key}"] = mapped(percent, interval)
        row["verdict"] = self._verdict([by_text, by_seeds], margin)
        row["verdict_note"] = self.note
        if row["unequal"]:
            row["verdict"] = NOT_COMPARABLE
            row["verdict_note"] = self.note if self.note == "single seed" else ""
        if seeds:
            row["comparison_method"] = seeds.method
            row["minimum_detectable_nll"] = least = seeds.minimum_detectable
            row["minimum_detectable_percent"] = percent(least)
            row["seeds_to_resolve"] = self._further_seeds(seeds, margin)
        return row

    def _further_seeds(self, seeds: SeedDifference, margin: float) -> int | None:
        """Return the seeds more of each variant that the interval over seeds takes, text aside."""
        few = max(0, FEWEST_SEEDS - seeds.fewest_seeds)
        if verdict([seeds.interval], None, margin) != UNRESOLVED:
            return few
        more = seeds.further_seeds(math.log1p(margin))
        return None if more is None else max(few, more)

    def _verdict(self, intervals: list[Interval | None], margin: float) -> str | None:
        found = verdict(intervals, self.fewest_seeds, margin)
        # Text alone says nothing of another training.
        no_spread = intervals[1] is None and self.fewest_seeds is not None
        return UNRESOLVED if no_spread and found not in (TOO_FEW_SEEDS, None) else found

    def influential(self) -> dict[str, Any]:
        """Return the documents that carry the difference most, and what is left without them."""
        first = next(iter(self.ours.values())).windows
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
