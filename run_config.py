"""From YAML and the command line to checked settings: the only user of Hydra.

Every entry point calls `run`, which composes the configuration, merges it into a fresh schema (a
misspelt key has nowhere to go), checks every value, and only then calls the job.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from data.settings import DataSettings, TokenizerSettings
from evaluation.settings import EvalSettings
from launch.errors import ConfigError
from modeling.config import GPTConfig, SamplingSettings, cache_dtype_problems
from tracking.configuration import (
    PASSES,
    differences,
    flat,
    read_configuration,
    sequences_per_step,
)
from tracking.errors import RunError
from tracking.settings import TrackingSettings
from training.settings import OptimSettings, ScheduleSettings, TrainerSettings

ROOT = Path(__file__).resolve().parent
EXPORT_DTYPES = ("float32", "bfloat16", "float16")
PREPARE_COMMANDS = ("prepare", "verify", "inspect")


def _name_problems(key: str, name: str | None) -> list[str]:
    """Return what is wrong with the name of a folder; None is none."""
    if name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return []
    return [f"{key} ('{name}') must be letters, digits, '.', '_' and '-', at most 100"]


@dataclass
class TrainConfig:
    """Everything `train_model.py` reads."""

    run_name: str = "???"
    runs_dir: str = "???"
    study: str | None = None
    init_from: str | None = None
    init_sha256: str | None = None
    seed: int = 0
    match: str = "params"
    match_cache_ratio: float = 0.25
    fair_lr: bool = False
    fair_lr_factors: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    @property
    def runs_path(self) -> Path:
        """The folder that the run's own is in: a study's runs have one for themselves."""
        return Path(self.runs_dir, self.study or "")

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = _name_problems("study", self.study)
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
        factors = self.fair_lr_factors
        # Six digits are what the rates' runs are named by.
        are_different = len({f"{factor:.6g}" for factor in factors}) == len(factors) > 2
        if not are_different or not all(0.0 < factor < math.inf for factor in factors):
            found.append(
                f"fair_lr_factors ({factors}) must be at least 3 different positive numbers, such "
                "as [0.5,1.0,2.0]"
            )
        return found


HF_MODULES = ("transformers", "kvlab")


def _names(value: Any) -> list[str]:
    """Return one name or several as a list."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


@dataclass
class EvalConfig:
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
        found = _name_problems("report_name", self.report_name)
        found += _name_problems("experiment", self.study)
        if isinstance(self.run, dict):
            found.append(f"run ({self.run}) must be a name or a list of names: run=[mha-*,mla-*]")
        if self.hf is not None and (isinstance(self.hf, dict) or not all(self.outside())):
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
        elif self.data_folder is not None and not self.outside():
            found.append("data_folder needs hf=..., the models that are scored on it")
        return found

    @property
    def runs_path(self) -> Path:
        """The folder of the runs: a study has one for itself."""
        return Path(self.runs_dir, self.study or "")

    @property
    def name_of_report(self) -> str:
        """The report's, if its folder is not there yet."""
        return self.report_name or self.study or "comparison"

    def patterns(self) -> list[str] | None:
        """Return the names that `run` gives, as a list; None if it gives none."""
        return None if self.run is None else _names(self.run)

    def outside(self) -> list[str]:
        """Return the models that `hf` names, each once."""
        return [] if self.hf is None else list(dict.fromkeys(_names(self.hf)))


@dataclass
class GenerateConfig:
    """Everything `generate_text.py` reads."""

    runs_dir: str = "???"
    run: str = "???"
    prompt: str = "def "
    max_new_tokens: int = 200
    cache_dtype: str | None = None
    device: str = "auto"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def problems(self) -> list[str]:
        """Return what is wrong with the keys at the root."""
        found = []
        if self.max_new_tokens < 0:
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
class ExportConfig:
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
        found = _name_problems("study", self.study)
        if (self.run is None) == (self.hf is None):
            found.append("one of run=NAME and hf=FOLDER must be given, and not both")
        if (self.hf is None) != (self.data_folder is None):
            found.append(
                "data_folder, a prepared folder with the model's tokenizer, goes with hf and hf "
                "with it: give both or neither"
            )
        if self.dtype not in EXPORT_DTYPES:
            found.append(f"dtype ('{self.dtype}') must be one of {', '.join(EXPORT_DTYPES)}")
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
    def runs_path(self) -> Path:
        """The folder of the runs: a study has one for itself."""
        return Path(self.runs_dir, self.study or "")

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


def _divide(numerator: int, denominator: int) -> int:
    """Divide for YAML's `${divide:a,b}`, refusing a remainder."""
    if denominator < 1 or numerator % denominator:
        raise ValueError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def _name_or(folder: str | None, otherwise: str) -> str:
    """Name a run in YAML's `${name_or:folder,otherwise}` after a folder, if there is one."""
    return otherwise if folder is None else Path(folder).expanduser().resolve().name


# Where things are, and whose: a cluster's conf/local may need them.
_HARMLESS_VARIABLE = re.compile(r"HOME|USER|LOGNAME|SCRATCH|TMPDIR|SLURM_JOB_ID|SLURM_TMPDIR")


def _root_folder(name: str, default: str | None = None) -> str:
    """Stand in for `${oc.env:...}`, which would let a file put a key into what is written."""
    if _HARMLESS_VARIABLE.fullmatch(name):
        return os.environ.get(name, default or "")
    if name != "PROJECT_ROOT":
        raise ValueError(
            f"a configuration cannot read the environment variable {name}, whose value would be "
            "written to config.yaml and reports; write the value itself"
        )
    return str(ROOT)


def register() -> None:
    """Make the schemas and the YAML arithmetic known to Hydra; calling it twice does no harm."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("oc.env", _root_folder, replace=True)
    OmegaConf.register_new_resolver("divide", _divide, replace=True)
    OmegaConf.register_new_resolver("name_or", _name_or, replace=True)
    OmegaConf.register_new_resolver("multiply", lambda a, b: a * b, replace=True)


def checked(config: DictConfig, schema: type[Config]) -> Config:
    """Turn a composed configuration into its dataclass.

    Raises:
        ConfigError: Naming every key that is unknown, missing or out of its range.
    """
    try:
        # Hydra lets `+key=value` add anything; a fresh schema does not.
        resolved = OmegaConf.to_container(config, resolve=True)
        _require_text(cast(dict[str, Any], resolved))
        fresh = OmegaConf.merge(OmegaConf.structured(schema), _literal(resolved))
        missing = sorted(OmegaConf.missing_keys(fresh))
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given: {missing[0]}=...")
        typed: Config = cast(Any, OmegaConf.to_object(fresh))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error
    sections: list[Any] = [typed]
    sections += [value for value in vars(typed).values() if dataclasses.is_dataclass(value)]
    problems = [problem for section in sections for problem in section.problems()]
    if problems:
        raise ConfigError("; ".join(problems))
    return typed


def _require_text(resolved: dict[str, Any]) -> None:
    """Refuse text that no file or file name can hold, before hours of training end with it."""
    for key, value in flat(resolved).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not _CAN_BE_WRITTEN.fullmatch(text):
                raise _no_text(key, text)


def _no_text(key: str, text: str) -> ConfigError:
    return ConfigError(f"{key} ({text!a}) holds bytes that are no text; give it in UTF-8")


# Bytes that are not UTF-8 arrive from the command line as lone surrogates.
_CAN_BE_WRITTEN = re.compile(r"[^\0\ud800-\udfff]*")


def _literal(node: Any) -> Any:
    """Escape what looks like an interpolation: what is resolved is not resolved again."""
    if isinstance(node, dict):
        return {key: _literal(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_literal(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node


def explain(error: BaseException, schema: type) -> str:
    """Say in one line what Hydra or OmegaConf refused, with the nearest valid key."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(str(cause) for cause in causes)
    override = re.search(r"Could not override '([^']+)'", text)
    full_key = re.search(r"full_key: (\S+)", text)
    key = override.group(1) if override else full_key.group(1) if full_key else ""
    if override or any(isinstance(c, ConfigKeyError | ConfigAttributeError) for c in causes):
        return f"there is no key '{key}'; {_nearest(key, schema)}"
    if "raised while composing config" in text and "Key '" in text:
        return f"{text.split(':', 1)[0]}: there is no key '{key}'; {_nearest(key, schema)}"
    if division := re.search(r"ValueError raised while resolving interpolation: (.*)", text):
        return f"{key} cannot be worked out: {division.group(1)}; set {key}"
    if "hydra/launcher/submitit" in text:
        return "this launcher is a package of its own; run: pip install hydra-submitit-launcher"
    if "Available options" in text:
        return " ".join(text.split("Config search path")[0].split())
    if isinstance(causes[-1], YAMLError):  # says in its last lines where
        return " ".join(text.split())
    if section := re.search(r"is not a subclass of (\w+)\. value: (.*)", text):
        names = [entry.name for entry in dataclasses.fields(schema)]
        types = [getattr(entry.type, "__name__", "") for entry in dataclasses.fields(schema)]
        name = names[types.index(section.group(1))] if section.group(1) in types else key
        return f"{name}: {section.group(2)} is no section of keys, such as {name}.KEY=..."
    composing = re.search(r"In '(.+)': \w+ raised while composing config:\n(.*)", text)
    in_file = f" (in conf/{composing.group(1)}.yaml or one of that name)" if composing else ""
    reason = composing.group(2) if composing else str(causes[-1]).splitlines()[0]
    if "is not Optional" in reason or "Incompatible value 'None'" in reason:
        reason = "null is not allowed"
    merging = re.search(r"Error merging override (.*)", text)
    reason = re.sub(r"\b(List|Dict)Config\b", lambda kind: kind.group(1).lower(), reason)
    where = key or (merging.group(1) if merging else "")
    reason = f"{reason.strip() or type(error).__name__}{in_file}"
    return f"{where}: {reason}" if where else reason


def _nearest(key: str, schema: type) -> str:
    """Suggest the valid key that looks most like an unknown one, or list its neighbours."""
    parent, _, leaf = key.rpartition(".")
    groups = [] if parent else [path.name for path in (ROOT / "conf").iterdir() if path.is_dir()]
    known = groups + _keys(schema)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near and parent:  # the right name under the wrong parent
        near = [k for k in known if "." in k and k.rpartition(".")[2] == leaf][:1]
    if near:
        return f"did you mean '{near[0]}'?"
    siblings = [k.rpartition(".")[2] for k in known if parent and k.rpartition(".")[0] == parent]
    return f"{parent} has {', '.join(siblings)}" if siblings else "see --help for those there are"


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Return every key of a schema, dotted."""
    keys: list[str] = []
    for entry in dataclasses.fields(schema):
        name = f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(entry.type):
            keys += _keys(cast(type, entry.type), f"{name}.")
        else:
            keys.append(name)
    return keys


def require_sound(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would without saying where, or say of what key.

    Raises:
        ConfigError: Naming the key.
    """
    for argument in arguments:
        key, assigned, value = argument.partition("=")
        if not _CAN_BE_WRITTEN.fullmatch(argument):
            raise _no_text(key, value.strip("'"))  # for_hydra quotes
        folder = ROOT / "conf" / key
        # A number or a list in place of a file's name.
        is_choice = assigned and re.fullmatch(r"\w+", key) and folder.is_dir()
        is_there = "/" not in value and (folder / f"{value}.yaml").is_file()
        if is_choice and not is_there and not re.match(r"[A-Za-z_'\"$]", value):
            names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            raise ConfigError(f"{key} ({value}) must be one of: {names}")


COMPOSING_FAILED = (
    *(HydraException, OmegaConfBaseException, YAMLError),
    *(ValueError, OSError, RecursionError),
)


# Their values are text as it stands: Hydra's grammar would strip "def " and refuse "f(x)".
_TEXT_KEY = re.compile(
    r"prompt|trainer\.sample_prompt|data\.(corpora\.[^.]+\.)?(text_template|document_start)"
)


def for_hydra(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return what a user types as Hydra takes it."""
    if config_name == "eval":
        # A choice of conf/experiment/ to Hydra, with settings that are a training's.
        arguments = [re.sub(r"^experiment=", "study=", argument) for argument in arguments]
    return [_as_text(argument) for argument in arguments]


def _as_text(argument: str) -> str:
    """Quote an override whose value is any text, unless the user quoted it for Hydra already."""
    key, _, value = argument.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    is_null = value == "null" and key.startswith("data.")
    if not _TEXT_KEY.fullmatch(key) or is_quoted or is_null:
        return argument
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"{key}='{value.replace('${', chr(92) + '${')}'"


def composed(config_name: str, overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose an entry point's configuration: the YAML files, then the overrides."""
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose(config_name, overrides, return_hydra_config=with_hydra)


def help_text(config_name: str) -> str:
    """Fill in the template in the entry point's YAML.

    Hydra does the same in three times the time: it lists its own groups too, and copies the schema
    for each.
    """
    config = composed(config_name, [], with_hydra=True)
    template, chosen = config.hydra.help.template, set(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    groups = {
        path.name: ", ".join(sorted(option.stem for option in path.glob("*.yaml")))
        for path in sorted((ROOT / "conf").iterdir())
        if path.name in chosen
    }
    return Template(template).substitute(
        APP_CONFIG_GROUPS="".join(f"{name}: {options}\n" for name, options in groups.items()),
        CONFIG=OmegaConf.to_yaml(config),
    )


def as_yaml(config: TrainConfig) -> str:
    """Return a configuration as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def require_same_run(saved: Path, config: TrainConfig) -> None:
    """Refuse to go on with a run whose configuration was another.

    Args:
        saved: The run's config.yaml.
        config: What is asked for now.

    Raises:
        ConfigError: Naming each field, its old and its new value.
    """
    try:
        old = read_configuration(saved)
    except RunError as error:
        raise ConfigError(str(error)) from error
    new = _flat(config)
    if sequences_per_step(old) == sequences_per_step(new) is not None:
        for key in PASSES:
            del old[key], new[key]
    # A key that came after the run began had its default then.
    old = {key: value for key, value in _flat(TrainConfig).items() if key in new} | old
    if changed := differences(old, new):
        listed = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changed.items())
        raise ConfigError(
            f"run '{config.run_name}' exists with another configuration ({listed}); choose another "
            "name with run_name=..."
        )


def _flat(config: Any) -> dict[str, Any]:
    """Return a configuration, or the defaults of its class, with dotted keys."""
    return flat(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config))))
