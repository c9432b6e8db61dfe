"""The model of a folder that a run begins with (`init_from`)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from commands.run_state import has_checkpoint
from data.prepared import PreparedData
from interop.importing.initial_model import (
    initial_model,
    recorded_model,
    require_same_tokenizer,
    sha256_of_model,
)
from launch.errors import ConfigError
from launch.schemas import TrainConfig
from modeling.config import GPTConfig
from tracking.configuration import read_configuration
from tracking.run_folder import RunFolder

Initial = Callable[[], Mapping[str, Tensor]]


def with_initial_model(folder: Path, config: TrainConfig) -> tuple[TrainConfig, Initial | None]:
    """Return the configuration with the model of a folder, and what reads its weights.

    Where the folder is gone, a run that has begun resumes without it.
    """
    run = RunFolder(config.runs_path, config.run_name)
    if not folder.is_dir() and (run.summary_path.exists() or has_checkpoint(run)):
        recorded = read_configuration(run.config_path)
        model, sha256 = recorded_model(recorded), recorded.get("init_sha256")
        return _with_model(config, model, sha256), None
    asked = config.model
    model, sha256 = initial_model(folder, asked).config, sha256_of_model(folder)
    if config.init_sha256 not in (None, sha256):
        raise ConfigError(
            f"{folder} holds another model than init_sha256 ({config.init_sha256}) says; it has "
            f"{sha256}"
        )
    config = _with_model(config, model, sha256)

    def weights() -> Mapping[str, Tensor]:
        """Read the weights where they are needed, so that training does not hold them twice."""
        if sha256_of_model(folder) != sha256:
            raise ConfigError(f"{folder} has changed since this command began; try again")
        return initial_model(folder, asked).weights

    return config, weights


def _with_model(config: TrainConfig, model: GPTConfig, sha256: str | None) -> TrainConfig:
    """Return the configuration with a folder's model, whose MLP has its width."""
    return dataclasses.replace(
        config, model=model, layers=model.layers, match="none", init_sha256=sha256
    )


def require_its_tokenizer(folder: str, model: GPTConfig, prepared: PreparedData) -> None:
    """Refuse data whose tokenizer is not the folder's."""
    what_to_do = f"set tokenizer=pretrained tokenizer.path={folder}"
    require_same_tokenizer(Path(folder).expanduser(), model, prepared, "init_from", what_to_do)
