"""How often intervals hold the truth: over documents of a real text, and over seeds.

    python -m benchmarks.coverage reports/NAME/documents.json
    python -m benchmarks.coverage

The documents that a report scored stand for all documents there are, and their nats per token for
the truth. From them texts of some documents are drawn again and again, and each gets an interval:
the one that reports give, and for comparison the bootstrap over documents by percentiles and by
BCa. An interval of 95 % should hold the truth in 95 of 100 texts. For every run, and for every
difference of two runs, paired by document. With `--subset FROM:TO` only some documents stand for
all.

Without a report studies of five variants are simulated: how often all simultaneous intervals of a
study hold, and how often all that each comparison would have alone (Welch's); how often equal
models, and such that differ by the margin, are called equivalent; and how often a difference is
seen that is the minimum detectable one by the true deviation.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import table
from comparing.noise import NatsBySeed, SeedDifference, estimate
from comparing.statistics import (
    CONFIDENCE,
    text_interval,
    unpaired_seed_interval,
)

Numbers = npt.NDArray[np.float64]
_RESAMPLES = 999


def bootstrap_intervals(
    nats: Numbers, tokens: Numbers, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the percentile and the BCa interval of nats per token, documents drawn together."""
    from scipy.stats import bootstrap

    def per_token(nats: Numbers, tokens: Numbers, axis: int) -> Numbers:
        return nats.sum(axis=axis) / tokens.sum(axis=axis)

    found = {}
    for name in ("percentile", "BCa"):
        interval = bootstrap(
            (nats, tokens),
            per_token,
            paired=True,
            n_resamples=_RESAMPLES,
            confidence_level=CONFIDENCE,
            method=name,
            rng=rng,
        ).confidence_interval
        found[name] = float(interval.low), float(interval.high)
    return found


def coverage(nats: Numbers, tokens: Numbers, documents: int, trials: int) -> dict[str, float]:
    """Return the share of drawn texts whose interval holds the truth, by kind of interval.

    Args:
        nats: Of each document that there is [n].
        tokens: Of each [n].
        documents: That a text has.
        trials: Texts to draw.
    """
    rng = np.random.default_rng(0)
    truth = float(nats.sum() / tokens.sum())
    held: dict[str, list[bool]] = {}
    for _ in range(trials):
        drawn = rng.integers(len(nats), size=documents)
        reported = text_interval(nats[drawn], tokens[drawn])
        if reported is None:
            raise SystemExit(f"a text of {documents} documents has no interval")
        others = bootstrap_intervals(nats[drawn], tokens[drawn], rng)
        for name, interval in {"reported": reported, **others}.items():
            held.setdefault(name, []).append(interval[0] <= truth <= interval[1])
    return {name: float(np.mean(each)) for name, each in held.items()}


def numbers_of(
    scored: dict[str, dict[str, list[float]]], subset: slice
) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Yield a name, nats and tokens by document of every run and every difference of two."""
    tokens = {name: np.array(found["tokens"][subset], float) for name, found in scored.items()}
    nats = {name: np.array(found["nll"][subset], float) for name, found in scored.items()}
    for name in scored:
        yield name, nats[name], tokens[name]
    for one, other in itertools.combinations(scored, 2):
        if np.array_equal(tokens[one], tokens[other]):
            yield f"{one} - {other}", nats[one] - nats[other], tokens[one]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the runs of a simulated study are drawn from; the first variant is the baseline.

    Args:
        seeds: Of each variant.
        deviations: Of a run's nats per token, of each variant.
        of_seed: Deviation of what a seed does to all variants alike.
        tails: Degrees of freedom of a run's noise; None: it is normal.
    """

    seeds: tuple[int, ...] = (3,) * 5
    deviations: tuple[float, ...] = (0.0093,) * 5
    of_seed: float = 0.0
    tails: float | None = None

    def draw(self, rng: np.random.Generator, shift: float = 0.0) -> dict[str, NatsBySeed]:
        """Return nats per token by variant and seed, those of variant 1 more by `shift`."""
        common = self.of_seed * rng.normal(size=max(self.seeds))
        drawn: dict[str, NatsBySeed] = {}
        for number, (count, deviation) in enumerate(zip(self.seeds, self.deviations, strict=True)):
            noise = rng.normal(size=count)
            if self.tails is not None:
                noise = rng.standard_t(self.tails, count) / (self.tails / (self.tails - 2)) ** 0.5
            values = 3.7 + common[:count] + deviation * noise + shift * (number == 1)
            drawn[str(number)] = dict(enumerate(values.tolist()))
        return drawn


STUDIES = {
    "3 seeds": Study(),
    "6 seeds": Study(seeds=(6,) * 5),
    "12 seeds, 0.35 %": Study(seeds=(12,) * 5, deviations=(0.0035,) * 5),
    "seeds 6, 3, 3, 2, 2": Study(seeds=(6, 3, 3, 2, 2)),
    "6 seeds that move all alike": Study(seeds=(6,) * 5, of_seed=0.0186),
    "6 seeds, one variant noisier": Study(seeds=(6,) * 5, deviations=(*(0.0093,) * 4, 0.0372)),
    "3 seeds, one variant noisier": Study(deviations=(*(0.0093,) * 4, 0.0372)),
    "3 seeds, t noise (4)": Study(tails=4.0),
}


def judged(study: Study, trials: int, margin: float = 0.01) -> dict[str, float]:
    """Return what share of simulated studies each statement is true of.

    Args:
        study: What their runs are drawn from.
        trials: How many to draw for each.
        margin: Relative difference of perplexity up to which models are equivalent.
    """
    rng, size = np.random.default_rng(0), math.log1p(margin)
    names = [str(number) for number in range(len(study.seeds))]
    shares: dict[str, list[bool]] = {}

    def note(**found: bool) -> None:
        for name, is_so in found.items():
            shares.setdefault(name, []).append(is_so)

    def is_within(one: SeedDifference | None) -> bool:
        return one is not None and -size < one.interval[0] and one.interval[1] < size

    for _ in range(trials):
        drawn = study.draw(rng)
        noise = estimate(drawn)
        assert noise is not None
        base = [noise.to_baseline(name, names[0]) for name in names[1:]]
        pairs = [noise.of_pair(a, b) for a, b in itertools.combinations(names, 2)]
        alone = [
            unpaired_seed_interval([*drawn[name].values()], [*drawn[names[0]].values()])
            for name in names[1:]
        ]
        note(
            baseline=all(one.interval[0] <= 0 <= one.interval[1] for one in base if one),
            pairs=all(one.interval[0] <= 0 <= one.interval[1] for one in pairs if one),
            alone=all(one[0] <= 0 <= one[1] for one in alone if one),
            equal=is_within(base[0]),
        )
        at_margin = estimate(study.draw(rng, size))
        one = at_margin and at_margin.to_baseline("1", names[0])
        note(at_margin=is_within(one))
        if base[0] is None:
            continue
        parts = [d**2 / n for d, n in zip(study.deviations, study.seeds, strict=True)]
        true = dataclasses.replace(base[0], error=math.sqrt(parts[0] + parts[1]))
        shifted = estimate(study.draw(rng, true.minimum_detectable))
        one = shifted and shifted.to_baseline("1", names[0])
        note(seen=bool(one and one.interval[0] > 0))
    return {name: float(np.mean(each)) for name, each in shares.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="*", type=Path, help="documents.json of a report")
    parser.add_argument("--documents", nargs="+", type=int, default=[12, 31, 60])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--subset", default=":", help="FROM:TO, of the documents that there are")
    arguments = parser.parse_args()
    if not arguments.reports:
        found = {name: judged(study, arguments.trials) for name, study in STUDIES.items()}
        rows = [[name, *(f"{s:.3f}" for s in shares.values())] for name, shares in found.items()]
        heads = ["study", "to the baseline", "pairs", "each alone", "equal: equivalent"]
        heads += ["at the margin: equivalent", "minimum detectable: seen"]
        print(table(rows, heads))
        return
    first, last = (int(end) if end else None for end in arguments.subset.split(":"))
    rows = []
    for path in arguments.reports:
        scored = json.loads(path.read_text())
        for name, nats, tokens in numbers_of(scored, slice(first, last)):
            for documents in arguments.documents:
                shares = coverage(nats, tokens, documents, arguments.trials)
                cells = [f"{share:.3f}" for share in shares.values()]
                rows.append([name, len(nats), documents, *cells])
    headers = ["number", "documents", "drawn", "reported", "percentile", "BCa"]
    print(table(rows, headers))


if __name__ == "__main__":
    main()
