"""The learning rate of each step."""

import math

from settings.training import ScheduleSettings


def learning_rate(settings: ScheduleSettings, peak: float, step: int, num_steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        settings: Shape, warm-up and end.
        peak: Learning rate after warm-up.
        step: From 0 to num_steps - 1. The last warm-up step is the first at the peak.
        num_steps: Steps of the run.

    Source:
        Cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983), one cycle without restarts. WSD
        (warm-up, stable, decay): Hu et al. 2024 (arXiv 2404.06395), with the decay 1 - sqrt of
        Haegele et al. 2024 (arXiv 2405.18392).
    """
    warmup_steps = settings.warmup(num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    low, last = settings.final_fraction, num_steps - 1
    if settings.name == "constant":
        return peak
    if settings.name == "wsd":
        decay_steps = min(settings.decay_fraction * num_steps, last - warmup_steps)
        progress = max(0.0, (step - (last - decay_steps)) / max(1.0, decay_steps))
        return peak * (low + (1 - low) * (1 - math.sqrt(progress)))
    progress = (step - warmup_steps) / max(1, last - warmup_steps)
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
