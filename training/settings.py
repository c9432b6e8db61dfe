"""What decides a run's numbers."""

from dataclasses import dataclass

from modeling.config import GPTConfig, SamplingSettings
from settings.evaluation import EvalSettings
from settings.training import OptimSettings, ScheduleSettings, TrainerSettings


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's numbers, apart from the data."""

    model: GPTConfig
    optim: OptimSettings
    schedule: ScheduleSettings
    trainer: TrainerSettings
    eval: EvalSettings
    sampling: SamplingSettings
    seed: int
