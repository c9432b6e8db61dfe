"""The configuration of a run: what `train_model.py` reads, and what is wrong at its root."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from modeling.config import GPTConfig, LayersConfig, SamplingSettings
from settings.data import DataSettings, TokenizerSettings
from settings.evaluation import EvalSettings
from settings.tracking import TrackingSettings
from settings.training import OptimSettings, ScheduleSettings, TrainerSettings


def name_problems(key: str, name: str | None) -> list[str]:
    """Return what is wrong with the name of a folder; None is none."""
    if name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return []
    return [f"{key} ('{name}') must be letters, digits, '.', '_' and '-', at most 100"]


class InAStudy:
    """What reads or writes runs, which may be those of a study."""

    runs_dir: str
    study: str | None

    @property
    def runs_path(self) -> Path:
        """The folder that a run's own is in: a study's runs have one for themselves."""
        return Path(self.runs_dir, self.study or "")


@dataclass
class TrainConfig(InAStudy):
    """Everything `train_model.py` reads."""

    run_name: str = "???"
    runs_dir: str = "???"
    study: str | None = None
    init_from: str | None = None
    init_sha256: str | None = None
    seed: int = 0
    dry_run: bool = False
    match: str = "params"
    match_cache_ratio: float = 0.25
    match_cache_context: int | None = None
    fair_lr: bool = False
    fair_lr_factors: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    model: GPTConfig = field(default_factory=GPTConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        if self.model.layers == LayersConfig():
            self.model.layers = self.layers

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = name_problems("study", self.study)
        if not 0 <= self.seed < 2**63:
            found.append(f"seed ({self.seed}) must be from 0 to 2^63 - 1")
        if self.match not in ("params", "cache", "none"):
            found.append(f"match ('{self.match}') must be params, cache or none")
        if self.init_from is not None and self.match == "cache":
            found.append(
                "match=cache changes widths, which init_from decides; leave one of them out"
            )
        if not 0.0 < self.match_cache_ratio <= 1.0:
            found.append(f"match_cache_ratio ({self.match_cache_ratio}) must be in (0, 1]")
        if self.match_cache_context is not None and self.match_cache_context < 1:
            found.append(f"match_cache_context ({self.match_cache_context}) must be at least 1")
        if self.model.layers != self.layers:
            found.append("model.layers follows layers; set layers.window and so on")
        factors = self.fair_lr_factors
        # Six digits are what the rates' runs are named by.
        are_different = len({f"{factor:.6g}" for factor in factors}) == len(factors) > 2
        if not are_different or not all(0.0 < factor < math.inf for factor in factors):
            found.append(
                f"fair_lr_factors ({factors}) must be at least 3 different positive numbers, such "
                "as [0.5,1.0,2.0]"
            )
        return found
