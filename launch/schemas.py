"""The root schemas: what each entry point reads, filled from conf/ and the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modeling.config import SamplingSettings
from settings.data import DataSettings, TokenizerSettings
from settings.dtypes import CACHE_DTYPE_NAMES, DEVICES, DTYPE_NAMES, device_meant, dtype_meant
from settings.evaluation import EvalSettings
from settings.fields import LABEL, Section, is_label, key
from settings.run import InAStudy, TrainConfig
from settings.tracking import TrackingSettings
from tracking.run_folder import listed, names_by_age

ROOT = Path(__file__).resolve().parent.parent
PREPARE_COMMANDS = ("prepare", "verify", "inspect")


def _names(value: Any) -> list[str]:
    """Return one name or several as a list."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


@dataclass
class EvalConfig(Section, InAStudy):
    """Everything `eval_model.py` reads."""

    runs_dir: str = key(kind="folder")
    """Folder that runs are in."""
    reports_dir: str = key(kind="folder")
    """Folder that reports are written to."""
    report_name: str | None = key(None, kind="label")
    """The folder in reports_dir; one that exists is kept, and the new one numbered. null: the
    study's name, or comparison."""
    study: str | None = None
    """A study (conf/experiment/study_*.yaml), typed as experiment=NAME, whose runs are in a folder
    of their own and have to agree in the protocol card. null: the runs that belong to none."""
    run: Any = None
    """A name or a list of names, with * and ? as wildcards; null takes every finished run."""
    hf: Any = key(None, kind="path")
    """Models of transformers to measure with the runs, on their text: a folder, or NAME or
    NAME@REVISION of the Hub, or a list of them. null: none."""
    hf_modules: str = key("transformers", one_of=("transformers", "kvlab"))
    """Whose modules compute them: transformers (any causal language model), or kvlab (the families
    of Llama, Mistral, Qwen3, SmolLM3, DeepSeek and GPT-2, which then decode as kvlab's own runs do,
    MLA absorbed)."""
    data_folder: str | None = key(None, kind="path")
    """A prepared folder (data/prepared/...) whose text hf models are scored on without any run."""
    split: str = key("validation", kind="word")
    """Split that is scored; the training split is never scored unless it is named here."""
    device: str = key("auto", one_of=DEVICES, hint=device_meant)
    """cpu, cuda, or auto."""
    eval: EvalSettings = field(default_factory=EvalSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        found = []
        if self.study is not None and not is_label(self.study):
            found.append(f"experiment ({self.study!r}) must be {LABEL}")
        if isinstance(self.run, dict):
            found.append(f"run ({self.run}) must be a name or a list of names: run='[mha-*,mla-*]'")
        if self.hf is not None and (isinstance(self.hf, dict) or not all(self.external())):
            found.append(f"hf ({self.hf}) must be a folder or a name of the Hub, or a list of them")
        if self.hf is not None and self.hf_modules == "transformers":
            found += [
                f"eval.{name}={value} is kvlab's, and hf models are in transformers' modules; set "
                "hf_modules=kvlab, or leave it out"
                for name in ("cache_dtype", "decode_path")
                if (value := getattr(self.eval, name)) not in (None, "float32")
            ]
        if self.data_folder is not None and (self.run is not None or self.study is not None):
            found.append(
                "data_folder is what hf models are scored on where there are no runs; leave it out "
                "with run=... or experiment=..., which bring their text"
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
class GenerateConfig(Section):
    """Everything `generate_text.py` reads."""

    runs_dir: str = key(kind="folder")
    """Folder that runs are in."""
    run: str | None = None
    """Name of a run with a checkpoint, or its folder; null takes the newest."""
    prompt: str | None = key(None, kind="prose")
    """Text to continue; null: that of the run's own sample (trainer.sample_prompt)."""
    max_new_tokens: int | None = key(None, at_least=0)
    """Tokens to write; null: 200, or as many as the context has room for."""
    cache_dtype: str | None = key(None, one_of=CACHE_DTYPE_NAMES, hint=dtype_meant)
    """What the KV cache stores: float32, bfloat16, float16 or int8; null: what the weights are."""
    device: str = key("auto", one_of=DEVICES, hint=device_meant)
    """cpu, cuda, or auto."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)


@dataclass
class PrepareConfig(Section):
    """Everything `prepare_data.py` reads."""

    runs_dir: str = key(kind="folder")
    """Folder that runs are in; preparing reads none."""
    command: str = key("prepare", one_of=PREPARE_COMMANDS)
    """What to do; the first word of the command line: verify, inspect, or prepare if there is
    none."""
    folder: str | None = key(None, kind="path")
    """verify, inspect: a prepared folder, in place of the one that data and tokenizer name."""
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        if self.folder is not None and self.command == "prepare":
            return ["folder applies to verify and inspect only; prepare has data.prepared_dir"]
        return []


@dataclass
class ExportConfig(Section, InAStudy):
    """Everything `export_model.py` reads."""

    runs_dir: str = key(kind="folder")
    """Folder that runs are in."""
    run: str | None = None
    """What to write: a run with a checkpoint, by its name."""
    study: str | None = key(None, kind="label")
    """The study that the run belongs to; null: none."""
    hf: str | None = key(None, kind="path")
    """In place of a run: a folder of transformers, with data that has its tokenizer."""
    data_folder: str | None = key(None, kind="path")
    """With hf: a prepared folder, whose validation texts the result is compared on."""
    out: str = key(kind="path")
    """The folder to write, which must not exist yet."""
    dtype: str = key("float32", one_of=DTYPE_NAMES, hint=dtype_meant)
    """Dtype of the written weights: float32, bfloat16 or float16."""
    device: str = key("auto", one_of=DEVICES, hint=device_meant)
    """Where the result is compared with kvlab's model: cpu, cuda, or auto."""
    convert: str | None = key(None, one_of=("gqa", "mqa", "mla"))
    """Give the model another attention first: gqa, mqa or mla; null leaves it."""
    num_key_value_heads: int | None = key(None, at_least=1)
    """With convert=gqa: g, key-value heads; null: a quarter of the heads."""
    kv_lora_rank: int | None = key(None, at_least=1)
    """With convert=mla: c, width of the latent; null: 4 times the width of a head."""
    qk_rope_head_dim: int | None = key(None, at_least=1)
    """With convert=mla: r, dimensions that are rotated; null: half of what is rotated now."""
    calibration_tokens: int = key(65_536, at_least=0)
    """With convert=mla: tokens of the training split on which it measures what the projections get;
    0 for none."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        found = []
        if (self.run is None) == (self.hf is None):
            names = names_by_age(self.runs_path) if self.run is None else []
            there = f"; runs there are: {listed(names)}" if names else ""
            found.append(f"one of run=NAME and hf=FOLDER must be given, and not both{there}")
        if (self.hf is None) != (self.data_folder is None):
            found.append(
                "data_folder, a prepared folder with the model's tokenizer, goes with hf and hf "
                "with it: give both or neither"
            )
        for name, conversion in (
            ("num_key_value_heads", "gqa"),
            ("kv_lora_rank", "mla"),
            ("qk_rope_head_dim", "mla"),
            ("calibration_tokens", "mla"),
        ):
            value = getattr(self, name)
            if value != getattr(ExportConfig, name) and self.convert != conversion:
                found.append(f"{name} ({value}) goes with convert={conversion}; leave it out")
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
