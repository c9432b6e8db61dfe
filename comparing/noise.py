"""How much the seed moves a perplexity, estimated once for all variants that are compared.

Three seeds of one variant say little of it; those of all variants together say more. How they are
put together is decided by stated tests, and reported:

- *welch*: each variant has its own variance, where Bartlett's test finds that they differ.
- *paired*: differences are taken within a seed, where an F test finds that the seed moves all
  variants alike; that takes the same seeds in each.
- *pooled*: one variance for all, otherwise.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from comparing.simultaneous import (
    dunnett_critical,
    minimum_detectable,
    seeds_that_resolve,
    sidak_critical,
    tukey_critical,
)
from comparing.statistics import Interval

VARIANCES_LEVEL = 0.05
"""Level of Bartlett's test."""
PAIRING_LEVEL = 0.01
"""Level of the F test: lower, since pairing by accident makes an interval too narrow."""
POOLED, PAIRED, WELCH = "pooled", "paired", "welch"

NatsBySeed = Mapping[int | None, float]
"""Nats per token of a variant's runs."""
Critical = Callable[[Mapping[str, int], float], float]
"""Returns a critical value for the seeds of each variant and degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class SeedDifference:
    """A difference of two variants' means over seeds, in nats per token.

    Args:
        value: That of the one less the other.
        reach: Standard errors from the middle of the simultaneous 95 % interval to its end.
        error: Standard error.
        df: Degrees of freedom of the variance that it is from.
        resolved_by: Returns, for a difference and a margin, the seeds of each variant with which it
            would be resolved in 80 % of all studies; None where that takes more than
            `simultaneous.MOST_SEEDS`.
        fewest_seeds: What the variant with fewer seeds has.
        method: In words: which interval, and which variance.
    """

    value: float
    reach: float
    error: float
    df: float
    resolved_by: Callable[[float, float], int | None]
    fewest_seeds: int
    method: str

    @property
    def interval(self) -> Interval:
        """Simultaneous 95 % interval."""
        return self.value - self.reach * self.error, self.value + self.reach * self.error

    @property
    def minimum_detectable(self) -> float:
        """The true difference that so many seeds show in 80 % of all studies."""
        return minimum_detectable(self.reach, self.error, self.df)

    def further_seeds(self, margin: float) -> int | None:
        """Return how many seeds more of each variant would resolve it; None beyond the limit."""
        needed = self.resolved_by(self.value, margin)
        return None if needed is None else max(1, needed - self.fewest_seeds)


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much the seed moves the variants of a family.

    Args:
        method: `POOLED`, `PAIRED` or `WELCH`.
        means: Nats per token of each variant, mean over its seeds.
        counts: Seeds of each.
        variances: Variance of a run that each counts with; one without has no interval.
        df: Degrees of freedom of the common variance; None for `WELCH`.
        bartlett: p of equal variances; None where fewer than two variants have one.
        seed_effect: p of a seed that moves nothing; None where variants have other seeds.
        constant: Variants whose seeds all gave one value, which says nothing of the noise.
    """

    method: str
    means: Mapping[str, float]
    counts: Mapping[str, int]
    variances: Mapping[str, float]
    df: int | None
    bartlett: float | None
    seed_effect: float | None
    constant: Sequence[str]

    @property
    def deviation(self) -> float:
        """Standard deviation of a run, nats per token: the root of the mean variance."""
        return math.sqrt(sum(self.variances.values()) / len(self.variances))

    def to_baseline(self, label: str, baseline: str) -> SeedDifference | None:
        """Return the difference to the baseline, simultaneous with those of all others.

        Dunnett's interval; with `WELCH` Student's t at Sidak's level. None where nothing is known
        of the noise of one of the two.
        """

        def critical(counts: Mapping[str, int], df: float) -> float:
            others = tuple(n for name, n in counts.items() if name != baseline)
            if self.method == WELCH:
                return sidak_critical(len(others), df)
            return dunnett_critical(others, counts[baseline], df)

        return self._difference(
            label, baseline, critical, "Sidak" if self.method == WELCH else "Dunnett"
        )

    def of_pair(self, label: str, other: str) -> SeedDifference | None:
        """Return a difference, simultaneous with those of every two variants.

        The Tukey-Kramer interval; with `WELCH` that of Games and Howell. None as above.
        """
        name = "Games-Howell" if self.method == WELCH else "Tukey-Kramer"

        def critical(counts: Mapping[str, int], df: float) -> float:
            return tukey_critical(len(counts), df)

        return self._difference(label, other, critical, name)

    def _difference(
        self, label: str, other: str, critical: Critical, name: str
    ) -> SeedDifference | None:
        pair = (label, other)
        if not all(name in self.variances for name in pair):
            return None
        value = self.means[label] - self.means[other]
        error, df = self._error(pair, self.counts)
        reach = critical(self.counts, df)

        def plan(seeds: int) -> tuple[float, float, float]:
            counts = dict.fromkeys(self.counts, seeds)
            error, df = self._error(pair, counts)
            return critical(counts, df), error, df

        return SeedDifference(
            value,
            reach,
            error,
            df,
            lambda size, margin: seeds_that_resolve(size, margin, 2, plan),
            min(self.counts[label], self.counts[other]),
            f"{name}, {self.method}",
        )

    def _error(self, pair: Sequence[str], counts: Mapping[str, int]) -> tuple[float, float]:
        """Return the standard error of a difference, and its degrees of freedom."""
        parts = [self.variances[name] / counts[name] for name in pair]
        if self.method == WELCH:
            terms = (part**2 / (counts[name] - 1) for part, name in zip(parts, pair, strict=True))
            return math.sqrt(sum(parts)), sum(parts) ** 2 / sum(terms)
        each = [n - 1 for n in counts.values()]
        if self.method == PAIRED:
            return math.sqrt(sum(parts)), float(each[0] * (len(each) - 1))
        known = [n - 1 for name, n in counts.items() if name not in self.constant]
        return math.sqrt(sum(parts)), float(sum(known))


def estimate(runs: Mapping[str, NatsBySeed]) -> Noise | None:
    """Estimate the noise of variants that are compared with each other.

    Args:
        runs: Nats per token by seed of each variant.

    Returns:
        The noise; None where no variant has two seeds that differ.
    """
    values = {name: np.array([*by_seed.values()]) for name, by_seed in runs.items()}
    several = {name: some for name, some in values.items() if len(some) > 1}
    constant = [name for name, some in several.items() if some.max() == some.min()]
    own = {n: float(v.var(ddof=1)) for n, v in several.items() if n not in constant}
    if not own:
        return None
    degrees = {name: len(values[name]) - 1 for name in own}
    bartlett, seed_effect = _bartlett([values[name] for name in own]), None
    method, df = POOLED, sum(degrees.values())
    variance = sum(degrees[name] * own[name] for name in own) / df
    if not constant and len({frozenset(by_seed) for by_seed in runs.values()}) == 1:
        seeds = next(iter(runs.values()))
        table = np.array([[by_seed[seed] for seed in seeds] for by_seed in runs.values()])
        seed_effect, within = _seed_effect(table)
    if bartlett is not None and bartlett < VARIANCES_LEVEL:
        method, df = WELCH, 0
    elif seed_effect is not None and seed_effect < PAIRING_LEVEL:
        method, variance = PAIRED, within
        df = (len(values) - 1) * (len(table[0]) - 1)
    return Noise(
        method,
        {name: float(some.mean()) for name, some in values.items()},
        {name: len(some) for name, some in values.items()},
        own if method == WELCH else dict.fromkeys(values, variance),
        df or None,
        bartlett,
        seed_effect,
        constant,
    )


def _bartlett(samples: Sequence[np.ndarray]) -> float | None:
    from scipy.stats import bartlett

    return float(bartlett(*samples).pvalue) if len(samples) > 1 else None


def _seed_effect(table: np.ndarray) -> tuple[float | None, float]:
    """Return p of the seeds' F test in a two-way layout, and the variance within seeds.

    Args:
        table: Nats per token [variants, seeds].
    """
    from scipy.stats import f

    variants, seeds = table.shape
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    df = (variants - 1) * (seeds - 1)
    # Rounding alone is no noise.
    if df == 0 or not np.square(rest).sum() > 1e-20 * np.square(table).sum():
        return None, 0.0
    within = float(np.square(rest).sum() / df)
    between = variants * float(table.mean(0).var(ddof=1))
    return float(f.sf(between / within, seeds - 1, df)), within
