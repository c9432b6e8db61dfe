"""How sure a number is: 95 % intervals over the windows of a text and over the seeds of a training.

The two answer different questions. Windows say how much a number depends on which text was scored;
seeds how much it depends on the randomness of the training. Neither contains the other.
"""

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]

CONFIDENCE = 0.95
FEWEST_BLOCKS = 10
"""From fewer blocks no interval is given: it would be far too narrow."""
_RESAMPLES = 4999


def block_length(window_tokens: Sequence[int], context: int) -> int:
    """Return how many neighbouring windows are drawn together.

    Windows of one document resemble each other, and overlapping ones share their text: blocks keep
    that. Their length in tokens, whatever the stride, grows with the cube root of the text's, the
    rate that is best for a variance (Hall, Horowitz and Jing 1995). Twice the root, counted in
    contexts: on the default corpus windows up to 8 apart still resemble each other, and blocks of
    16 of its 367 windows give an interval a quarter wider than blocks of 8, longer ones no wider on
    the whole.

    Args:
        window_tokens: Scored tokens of each window, in the order of the text.
        context: Tokens that a window shows the model.
    """
    tokens = sum(window_tokens)
    contexts = math.ceil(2 * (tokens / context) ** (1 / 3))
    return max(1, math.ceil(contexts * context * len(window_tokens) / max(1, tokens)))


def text_interval(
    window_nll: Sequence[float], window_tokens: Sequence[int], context: int
) -> Interval | None:
    """Return the interval of nats per token, from a bootstrap over blocks of windows.

    For a paired difference of two models on the same windows pass the differences of their nats.
    Bias-corrected and accelerated (Efron 1987), by scipy; the same input gives the same interval.

    Args:
        window_nll: Nats of each window, in the order of the text.
        window_tokens: Tokens they are over.
        context: Tokens that a window shows the model.

    Returns:
        Low and high, or None if the text is too short for `FEWEST_BLOCKS`.

    Source:
        Block bootstrap: Carlstein 1986. Expanded for few blocks: Hesterberg 2015 (The American
        Statistician 69, section 5.3).
    """
    from scipy.stats import bootstrap, norm, t

    length = block_length(window_tokens, context)
    starts = np.arange(0, len(window_nll) // length * length, length)
    if len(starts) < FEWEST_BLOCKS:
        return None
    # The last block takes what is left over.
    nats = np.add.reduceat(np.asarray(window_nll, dtype=np.float64), starts)
    tokens = np.add.reduceat(np.asarray(window_tokens, dtype=np.float64), starts)
    rates = nats / tokens
    if np.ptp(rates) <= 1e-12 * max(1.0, float(np.abs(rates).max())):
        mean = float(nats.sum() / tokens.sum())
        return mean, mean

    # Resampling k blocks has a variance smaller by (k - 1) / k than theirs, and normal tails:
    # expanded as by Hesterberg, 24 blocks ask for 96.5 %.
    k = len(starts)
    tail = norm.cdf(-math.sqrt(k / (k - 1)) * t.ppf((1 + CONFIDENCE) / 2, k - 1))

    def per_token(nats: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
        quotient: np.ndarray = nats.sum(axis=axis) / tokens.sum(axis=axis)
        return quotient

    found = bootstrap(
        (nats, tokens),
        per_token,
        paired=True,
        n_resamples=_RESAMPLES,
        batch=200,  # bounds the memory where strides are short and windows many
        confidence_level=1 - 2 * tail,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


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


def verdict(difference: float, intervals: Sequence[Interval | None]) -> str | None:
    """Say what a difference of nats per token to the baseline amounts to.

    Args:
        difference: Of a variant less the baseline; above 0 it is worse.
        intervals: Of the difference, over windows and over seeds; None where there is none.

    Returns:
        "better" or "worse" if no interval holds 0, else "indistinguishable"; None without any.
    """
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    if any(low <= 0.0 <= high for low, high in known):
        return "indistinguishable"
    return "worse" if difference > 0 else "better"
