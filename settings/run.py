"""The configuration of a run: what `train_model.py` reads."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from modeling.config import GPTConfig, LayersConfig, SamplingSettings
from settings.data import DataSettings, TokenizerSettings
from settings.evaluation import EvalSettings
from settings.fields import LARGEST_SEED, Section, key
from settings.tracking import TrackingSettings
from settings.training import OptimSettings, ScheduleSettings, TrainerSettings


class InAStudy:
    """What reads or writes runs, which may be those of a study."""

    runs_dir: str
    study: str | None

    @property
    def runs_path(self) -> Path:
        """The folder that a run's own is in: a study's runs have one for themselves."""
        return Path(self.runs_dir, self.study or "")


@dataclass
class TrainConfig(Section, InAStudy):
    """Everything `train_model.py` reads."""

    run_name: str = key()
    """The folder in runs_dir. A run with this name that is not finished is resumed. Text of your
    own gives it the name of its folder: mla-nano-local-my_texts-seed0."""
    runs_dir: str = key(kind="folder", changes_result=False)
    """Folder that runs are in."""
    study: str | None = key(None, kind="label", changes_result=False)
    """A folder in runs_dir for the runs of a study, which eval_model.py experiment=NAME compares;
    experiment=study_... sets it. null: the run's folder is in runs_dir itself."""
    init_from: str | None = key(None, kind="path", changes_result=False)  # init_sha256 has a part
    """A folder with a model of transformers' Llama, DeepSeek or GPT-2 family, such as
    export_model.py writes, to begin with: its attention, widths and weights are trained further, at
    this training's context (model.max_position_embeddings). Its tokenizer has to be the data's.
    null: random weights."""
    init_sha256: str | None = None
    """Hash of that folder's config.json and weights; worked out and recorded, so that a run is not
    resumed with others. null: whatever they are."""
    seed: int = key(0, at_least=0, at_most=LARGEST_SEED)
    """Decides the initial weights and the order of the data."""
    dry_run: bool = False
    """Time three steps, say what the run takes (tokens, hours, memory, disk, download) and stop;
    nothing is prepared, written or sent. With -m for each run, and in total."""
    match: str = key("params", one_of=("params", "cache", "none"))
    """params: the MLP gets the width that gives the model the number of parameters of the same
    model with multi-head attention and RoPE. cache: the attention gets the width (kv_lora_rank, or
    num_key_value_heads) that gives it match_cache_ratio of multi-head attention's KV cache, and
    then the MLP as for params. none: model.intermediate_size as it stands."""
    match_cache_ratio: float = key(0.25, above=0, at_most=1)
    """Share of multi-head attention's KV cache that match=cache gives the attention."""
    match_cache_context: int | None = key(None, at_least=1)
    """Tokens of a sequence at which match=cache compares caches; null: the model's context. Where
    no layer has a window it makes no difference."""
    fair_lr: bool = False
    """Train first, with seed 0 in lr_grid/ of the runs folder, one run at each of fair_lr_factors x
    optim.learning_rate, and then this run at the rate of the least validation NLL (a parabola's
    minimum). All seeds of a variant share them, if seed${seed} in run_name is what sets them
    apart."""
    fair_lr_factors: list[float] = key(lambda: [0.5, 1.0, 2.0])
    """Factors of the learning rates that fair_lr tries."""
    model: GPTConfig = field(default_factory=GPTConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    eval: EvalSettings = key(EvalSettings, changes_result=False)
    sampling: SamplingSettings = key(SamplingSettings, changes_result=False)
    tracking: TrackingSettings = key(TrackingSettings, changes_result=False)

    def __post_init__(self) -> None:
        if self.model.layers == LayersConfig():
            self.model.layers = self.layers

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        found = []
        if self.init_from is not None and self.match == "cache":
            found.append(
                "match=cache changes widths, which init_from decides; leave one of them out"
            )
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
