"""Critical values of simultaneous intervals, and what so many seeds can resolve with them.

With a family of k comparisons at 95 % each, one of them errs in more than 5 % of all studies. Here
all intervals of a family hold together in 95 %: Dunnett's against one baseline, Tukey's between
every two variants. Both integrals are computed by Gauss-Legendre quadrature: no random numbers, and
a hundredth of the time of scipy's quantiles, which the tests compare them with.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from comparing.statistics import CONFIDENCE

POWER = 0.8
"""Share of studies in which a difference of the minimum detectable size is seen."""
MOST_SEEDS = 1000
"""More seeds than these are not worth naming."""

Numbers = npt.NDArray[np.float64]


@lru_cache(maxsize=1024)
def dunnett_critical(counts: tuple[int, ...], baseline_count: int, df: float) -> float:
    """Return how many standard errors Dunnett's two-sided intervals reach to each side.

    Args:
        counts: Seeds of each variant that is compared with the baseline.
        baseline_count: Seeds of the baseline.
        df: Degrees of freedom of the common variance.

    Source:
        Dunnett 1955; unequal counts as in scipy.stats.dunnett.
    """
    from scipy.stats import norm

    loads = [math.sqrt(n / (n + baseline_count)) for n in counts]

    def inside(z: Numbers, width: Numbers) -> Numbers:
        parts = [
            norm.cdf((load * z + width) / math.sqrt(1 - load**2))
            - norm.cdf((load * z - width) / math.sqrt(1 - load**2))
            for load in loads
        ]
        return np.asarray(norm.pdf(z) * np.prod(parts, axis=0))

    return _critical(inside, df)


@lru_cache(maxsize=1024)
def tukey_critical(variants: int, df: float) -> float:
    """Return how many standard errors Tukey's intervals of all pairs reach to each side.

    With unequal numbers of seeds this is the Tukey-Kramer interval, which is a little wide.

    Args:
        variants: How many there are, at least 2.
        df: Degrees of freedom of the common variance.

    Source:
        Tukey 1953; Kramer 1956. The studentized range's quantile over the square root of 2.
    """
    from scipy.stats import norm

    def inside(z: Numbers, width: Numbers) -> Numbers:
        within = norm.cdf(z) - norm.cdf(z - math.sqrt(2) * width)
        return np.asarray(variants * norm.pdf(z) * within ** (variants - 1))

    return _critical(inside, df)


def sidak_critical(comparisons: int, df: float) -> float:
    """Return Student's t at Sidak's level: simultaneous whatever the variances are."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE ** (1 / comparisons)) / 2, df))


def _critical(inside: Callable[[Numbers, Numbers], Numbers], df: float) -> float:
    """Return the width c for which the mean over s of the integral of inside(z, c s) is 95 %.

    s is the estimated deviation over the true one: chi over the root of its degrees of freedom.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2

    nodes, weights = np.polynomial.legendre.leggauss(96)
    z, of_z = 8 * nodes, 8 * weights
    # Twice as dense towards 0, where a wide interval is needed.
    u, of_u = ((1 + nodes) / 2) ** 2, (1 + nodes) / 2 * weights
    s = np.sqrt(chi2.ppf(u, df) / df)[:, None]

    def missing(c: float) -> float:
        return float(of_u @ (inside(z, c * s) @ of_z)) - CONFIDENCE

    high = 4.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.5, high, xtol=1e-10))


def minimum_detectable(critical: float, error: float, df: float) -> float:
    """Return the true difference that an interval leaves 0 out for in `POWER` of all studies.

    Args:
        critical: Standard errors from the middle of the interval to its end.
        error: Standard error of the difference.
        df: Degrees of freedom of the variance it is from.
    """
    from scipy.optimize import brentq

    def missing(shift: float) -> float:
        return _power(critical, shift, df) - POWER

    high = critical + 2.0
    while missing(high) < 0:
        high *= 2
    return error * float(brentq(missing, 0.0, high, xtol=1e-8))


def _power(critical: float, shift: float, df: float) -> float:
    """Return how often a difference of `shift` standard errors is seen, with its sign."""
    from scipy.stats import nct

    return float(nct.sf(critical, df, shift))


def seeds_that_resolve(
    difference: float,
    margin: float,
    least: int,
    plan: Callable[[int], tuple[float, float, float]],
) -> int | None:
    """Return the seeds of each variant with which an estimated difference would be resolved.

    Resolved: with `POWER`, the interval leaves out 0, or lies within the margin.

    Args:
        difference: As it is estimated now.
        margin: Differences up to this are equivalent; in the same units.
        least: Seeds from which to look.
        plan: Returns for a number of seeds of each variant what an interval has then: critical
            value, standard error and degrees of freedom.

    Returns:
        The number; None if it is more than `MOST_SEEDS`.
    """
    from scipy.stats import norm

    def is_resolved(seeds: int) -> bool:
        critical, error, df = plan(seeds)
        if _power(critical, abs(difference) / error, df) >= POWER:
            return True
        room = (margin - critical * error) / error
        shift = abs(difference) / error
        within = norm.cdf(room - shift) - norm.cdf(-room - shift)
        return bool(room > 0 and within >= POWER)

    if not is_resolved(MOST_SEEDS):
        return None
    low, high = least - 1, least
    while not is_resolved(high):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_resolved(middle) else (middle, high)
    return high
