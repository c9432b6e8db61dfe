"""How sure a number is: 95 % intervals over the documents of a text and over training seeds.

The two answer different questions. Documents say how much a number depends on which text was
scored; seeds how much it depends on the randomness of the training. Neither contains the other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]

CONFIDENCE = 0.95
FEWEST_DOCUMENTS = 10
"""From fewer documents no interval is given: it would say little, and not hold what it says."""
FEWEST_SEEDS = 3
"""From fewer seeds no verdict is given: two leave one degree of freedom, and one none."""


def without_each(
    nll: npt.ArrayLike, tokens: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return nats per token [n] without each of n documents, and the share of tokens [n] of each.

    Args:
        nll: Nats of each document [n], or differences of them.
        tokens: Scored tokens of each [n].
    """
    nats, counts = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    rest = counts.sum() - counts
    without = np.divide(nats.sum() - nats, rest, out=np.full_like(nats, np.nan), where=rest > 0)
    return without, counts / counts.sum()


def text_interval(nll: npt.ArrayLike, tokens: npt.ArrayLike) -> Interval | None:
    """Return the interval of nats per token over documents, from a jackknife that leaves one out.

    Documents are what a text consists of, and what another text would have others of. Nats per
    token are a ratio of sums: each document counts by its tokens. Student's t has as many degrees
    of freedom as there are documents in effect (Kish's), less one: a few long ones are few.

    For a paired difference of two models pass the differences of their nats on each document.

    Args:
        nll: Nats of each document [n].
        tokens: Scored tokens of each [n]; a document of none is ignored.

    Returns:
        Low and high, or None for fewer than `FEWEST_DOCUMENTS`.

    Source:
        Jackknife of a ratio: Tukey 1958; Cochran, Sampling Techniques, section 6.15. Effective
        number of documents: Kish 1965. Chosen by its coverage: docs/comparison.md.
    """
    from scipy.stats import t

    nats, counts = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    nats, counts = nats[counts > 0], counts[counts > 0]
    n = len(counts)
    if n < FEWEST_DOCUMENTS:
        return None
    mean = float(nats.sum() / counts.sum())
    without, share = without_each(nats, counts)
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    in_effect = 1 / float((share**2).sum())
    half = float(t.ppf((1 + CONFIDENCE) / 2, max(1.0, in_effect - 1))) * error
    return mean - half, mean + half


class Influence(NamedTuple):
    """What a document does to a difference.

    Attributes:
        document: Its number, from 0.
        without: The difference of nats per token without it.
    """

    document: int
    without: float


def most_influential(
    nll: npt.ArrayLike, tokens: npt.ArrayLike, most: int
) -> tuple[list[Influence], float | None]:
    """Find the documents without which a difference of nats per token changes most.

    Args:
        nll: Differences of the nats of each document [n].
        tokens: Scored tokens of each [n].
        most: How many to return.

    Returns:
        Them, the most influential first, and the difference without all of them; nothing and None
        where no document would be left.
    """
    nats, counts = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if np.count_nonzero(counts) <= most:
        return [], None
    whole = nats.sum() / counts.sum()
    without, _ = without_each(nats, counts)
    order = np.argsort(-np.abs(without - whole), kind="stable")[:most]
    order = order[counts[order] > 0]
    rest = np.delete(nats, order).sum() / np.delete(counts, order).sum()
    return [Influence(int(i), float(without[i])) for i in order], float(rest)


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's t interval of a mean over seeds; None for fewer than two.

    For the difference of two variants pass the differences of the runs with the same seed.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2:
        return None
    if max(values) == min(values):
        return values[0], values[0]
    found = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def unpaired_seed_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Return Welch's t interval of the difference of two means, where no seed is in both."""
    from scipy.stats import ttest_ind

    if min(len(ours), len(theirs)) < 2:
        return None
    if max(ours) == min(ours) and max(theirs) == min(theirs):
        return ours[0] - theirs[0], ours[0] - theirs[0]
    found = ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


BETTER, WORSE, UNRESOLVED = "better", "worse", "unresolved"
EQUIVALENT = "equivalent"
TOO_FEW_SEEDS = "too few seeds"
NOT_COMPARABLE = "not comparable"


def equivalent(margin: float) -> str:
    """Return the verdict of a difference that lies within a margin, such as 0.01."""
    return f"{EQUIVALENT} within {100 * margin:g} %"


def kind_of(verdict: str | None) -> str | None:
    """Return a verdict without its margin: `EQUIVALENT`, or the verdict itself."""
    return EQUIVALENT if verdict and verdict.startswith(EQUIVALENT) else verdict


def verdict(intervals: Sequence[Interval | None], seeds: int | None, margin: float) -> str | None:
    """Say what a difference of nats per token amounts to.

    Args:
        intervals: Those of the difference, over documents and over seeds; None where there is
            none. Above 0 a variant is worse.
        seeds: On the side that has fewer; None where neither was trained here, so that the weights
            themselves are compared.
        margin: Relative difference of perplexity up to which two models are equivalent.

    Returns:
        `TOO_FEW_SEEDS` below `FEWEST_SEEDS`, None without any interval. `equivalent` if every
        interval lies within the margin; "better" or "worse" if every one leaves out 0 on that
        side; else "unresolved".
    """
    if seeds is not None and seeds < FEWEST_SEEDS:
        return TOO_FEW_SEEDS
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    most = math.log1p(margin)
    if all(-most < low and high < most for low, high in known):
        return equivalent(margin)
    if all(low > 0 for low, _ in known):
        return WORSE
    return BETTER if all(high < 0 for _, high in known) else UNRESOLVED
