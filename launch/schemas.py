"""The root schemas: what each entry point reads, and what is wrong with the keys at the root.

`launch` fills them from the files in conf/ and the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modeling.config import SamplingSettings, cache_dtype_problems, dtype_meant
from settings.data import DataSettings, TokenizerSettings
from settings.dtypes import DTYPE_NAMES
from settings.evaluation import EvalSettings
from settings.run import InAStudy, TrainConfig, name_problems
from settings.tracking import TrackingSettings
from settings.training import device_problems
from tracking.run_folder import listed, names_by_age

ROOT = Path(__file__).resolve().parent.parent
PREPARE_COMMANDS = ("prepare", "verify", "inspect")


HF_MODULES = ("transformers", "kvlab")


def _names(value: Any) -> list[str]:
    """Return one name or several as a list."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


@dataclass
class EvalConfig(InAStudy):
    """Everything `eval_model.py` reads."""

    runs_dir: str = "???"
    reports_dir: str = "???"
    report_name: str | None = None
    study: str | None = None
    run: Any = None
    hf: Any = None
    hf_modules: str = "transformers"
    data_folder: str | None = None
    split: str = "validation"
    device: str = "auto"
    eval: EvalSettings = field(default_factory=EvalSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = name_problems("report_name", self.report_name)
        found += device_problems("device", self.device)
        found += name_problems("experiment", self.study)
        if isinstance(self.run, dict):
            found.append(f"run ({self.run}) must be a name or a list of names: run='[mha-*,mla-*]'")
        if self.hf is not None and (isinstance(self.hf, dict) or not all(self.external())):
            found.append(f"hf ({self.hf}) must be a folder or a name of the Hub, or a list of them")
        if self.hf is not None and self.hf_modules == "transformers":
            for key in ("cache_dtype", "decode_path"):
                value = getattr(self.eval, key)
                if value not in (None, "float32"):
                    found.append(
                        f"eval.{key}={value} is kvlab's, and hf models are in transformers' "
                        "modules; set hf_modules=kvlab, or leave it out"
                    )
        if self.hf_modules not in HF_MODULES:
            found.append(f"hf_modules ('{self.hf_modules}') must be {' or '.join(HF_MODULES)}")
        if self.data_folder is not None and (self.run is not None or self.study is not None):
            found.append(
                "data_folder is what hf models are scored on where there are no runs; leave it out "
                "beside run=... or experiment=..., which bring their text"
            )
        elif self.data_folder is not None and not self.external():
            found.append("data_folder needs hf=..., the models that are scored on it")
        return found

    @property
    def name_of_report(self) -> str:
        """The report's, if its folder is not there yet."""
        return self.report_name or self.study or "comparison"

    def patterns(self) -> list[str] | None:
        """Return the names that `run` gives, as a list; None if it gives none."""
        return None if self.run is None else _names(self.run)

    def external(self) -> list[str]:
        """Return the models that `hf` names, each once."""
        return [] if self.hf is None else list(dict.fromkeys(_names(self.hf)))


@dataclass
class GenerateConfig:
    """Everything `generate_text.py` reads."""

    runs_dir: str = "???"
    run: str | None = None
    prompt: str | None = None
    max_new_tokens: int | None = None
    cache_dtype: str | None = None
    device: str = "auto"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = device_problems("device", self.device)
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            found.append(f"max_new_tokens ({self.max_new_tokens}) must be at least 0")
        return found + cache_dtype_problems("cache_dtype", self.cache_dtype)


@dataclass
class PrepareConfig:
    """Everything `python -m data.prepare` reads."""

    runs_dir: str = "???"
    command: str = "prepare"
    folder: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = []
        if self.command not in PREPARE_COMMANDS:
            found.append(f"command ('{self.command}') must be one of {', '.join(PREPARE_COMMANDS)}")
        if self.folder is not None and self.command == "prepare":
            found.append("folder applies to verify and inspect only; prepare has data.prepared_dir")
        return found


@dataclass
class ExportConfig(InAStudy):
    """Everything `export_model.py` reads."""

    runs_dir: str = "???"
    run: str | None = None
    study: str | None = None
    hf: str | None = None
    data_folder: str | None = None
    out: str = "???"
    dtype: str = "float32"
    device: str = "auto"
    convert: str | None = None
    num_key_value_heads: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    calibration_tokens: int = 65_536

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = name_problems("study", self.study)
        found += device_problems("device", self.device)
        if (self.run is None) == (self.hf is None):
            names = names_by_age(self.runs_path) if self.run is None else []
            there = f"; runs there are: {listed(names)}" if names else ""
            found.append(f"one of run=NAME and hf=FOLDER must be given, and not both{there}")
        if (self.hf is None) != (self.data_folder is None):
            found.append(
                "data_folder, a prepared folder with the model's tokenizer, goes with hf and hf "
                "with it: give both or neither"
            )
        if self.dtype not in DTYPE_NAMES:
            meant = dtype_meant("dtype", self.dtype, DTYPE_NAMES)
            found.append(f"dtype ('{self.dtype}') must be one of {', '.join(DTYPE_NAMES)}{meant}")
        if self.convert not in (None, "gqa", "mqa", "mla"):
            found.append(f"convert ('{self.convert}') must be null, gqa, mqa or mla")
        for key, conversion in (
            ("num_key_value_heads", "gqa"),
            ("kv_lora_rank", "mla"),
            ("qk_rope_head_dim", "mla"),
            ("calibration_tokens", "mla"),
        ):
            value = getattr(self, key)
            if value != getattr(ExportConfig, key) and self.convert != conversion:
                found.append(f"{key} ({value}) goes with convert={conversion}; leave it out")
            least = 0 if key == "calibration_tokens" else 1
            if value is not None and value < least:
                found.append(f"{key} ({value}) must be at least {least}")
        return found

    @property
    def out_path(self) -> Path:
        """The folder to write."""
        return Path(self.out).expanduser().resolve()


Config = TypeVar("Config", TrainConfig, EvalConfig, GenerateConfig, ExportConfig, PrepareConfig)

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "generate": GenerateConfig,
    "export": ExportConfig,
    "prepare": PrepareConfig,
}
