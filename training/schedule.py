"""The learning rate of each step."""

import math

from training.settings import ScheduleSettings


def learning_rate(settings: ScheduleSettings, peak: float, step: int, num_steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        settings: Shape, warm-up and final fraction.
        peak: Learning rate after warm-up.
        step: From 0 to num_steps - 1. The last warm-up step is the first at the peak.
        num_steps: Steps of the run.

    Source:
        Cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983), one cycle without restarts.
    """
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.name == "constant":
        return peak
    progress = (step - settings.warmup_steps) / max(1, num_steps - 1 - settings.warmup_steps)
    low = settings.final_fraction
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
