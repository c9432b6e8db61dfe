"""`fair_lr`: each variant trains at its own best learning rate, found on a small grid.

One rate for all attentions favours the one that it suits. What the grid compares is the validation
NLL at the end of a run, with seed 0, so that all seeds of a variant share the grid and its choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracking.notices import aligned
from tracking.run_folder import without_seed
from training.errors import TrainingFailed

GRID_FOLDER = "lr_grid"
"""In the runs folder. `eval_model.py` does not look into it."""
GRID_SEED = 0


@dataclass(frozen=True)
class Choice:
    """The learning rate that a grid speaks for, and why in a few words."""

    learning_rate: float
    reason: str


def grid(learning_rate: float, factors: Sequence[float]) -> list[float]:
    """Return the rates to try, ascending, to the six digits that the names of the runs have."""
    return sorted({float(f"{learning_rate * factor:.6g}") for factor in factors})


def name_in_grid(run_name: str, seed: int, rate: float) -> str:
    """Return the name of a run of the grid: the run's own without its seed, and the rate."""
    return f"{without_seed(run_name, seed)}-lr{rate:.6g}".lstrip("-_.,+=")


def choose(nlls: Mapping[float, float]) -> Choice:
    """Take the minimum of the parabola through the three rates around the best, over log rate.

    Args:
        nlls: Validation NLL by learning rate, at least three; infinite where training diverged.

    Returns:
        A rate within the grid: the best one itself where the parabola's minimum is outside, or
        where a neighbour diverged.

    Raises:
        TrainingFailed: If training diverged at all of them.
    """
    rates = sorted(nlls)
    best = min(range(len(rates)), key=lambda index: nlls[rates[index]])
    if not math.isfinite(nlls[rates[best]]):
        raise TrainingFailed(
            f"training diverged at every learning rate of the grid, {rates[0]:g} to "
            f"{rates[-1]:g}; lower optim.learning_rate or fair_lr_factors"
        )
    edge = Choice(rates[best], "the best is at the edge of the grid, widen fair_lr_factors")
    is_at_edge = best in (0, len(rates) - 1)
    first = min(max(best - 1, 0), len(rates) - 3)
    near = rates[first : first + 3]
    values = [nlls[rate] for rate in near]
    if not all(map(math.isfinite, values)):
        neighbour = Choice(rates[best], "the best of the grid, next to a rate that diverged")
        return edge if is_at_edge else neighbour
    # Around the best, so that the fit is as exact for small rates as for large ones.
    curvature, slope, _ = np.polyfit(np.log(near) - math.log(rates[best]), values, 2)
    if curvature > 1e-6:  # less is rounding
        rate = rates[best] * math.exp(-slope / (2 * curvature))
        if near[0] < rate < near[-1]:
            why = "the minimum of a parabola over the log of the rate"
            return Choice(float(f"{rate:.4g}"), why)
    return edge


def describe(nlls: Mapping[float, float], choice: Choice) -> str:
    """Lay out rates and NLLs, and say what was chosen."""
    rows = [
        (f"{rate:g}", f"{nll:.4f}" if math.isfinite(nll) else "diverged")
        for rate, nll in sorted(nlls.items())
    ]
    table = aligned([("learning rate", "validation NLL"), *rows])
    return f"{table}\nfair_lr: learning rate {choice.learning_rate:g}, {choice.reason}"
