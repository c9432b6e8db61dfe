"""The model that a run trains, and what it costs compared with MHA."""

import dataclasses

from data.prepared import PreparedData
from launch.errors import ConfigError
from launch.schemas import TrainConfig
from modeling.accounting import match_to_mha, mha_baseline
from modeling.arrangement import remarks
from modeling.config import GPTConfig
from training.dry_run import Unprepared
from training.recipe.budget_sheet import budget_sheet


def with_tokenizer(config: TrainConfig, prepared: PreparedData | Unprepared) -> TrainConfig:
    """Return the configuration with the model that is trained: what is recorded.

    Raises:
        ConfigError: If the model does not fit the tokenizer.
    """
    vocab_size = config.model.vocab_size or prepared.vocab_size
    if vocab_size < prepared.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({vocab_size}) must be at least the tokenizer's "
            f"{prepared.vocab_size}; set model.vocab_size=null to take that"
        )
    end = config.model.end_of_document_id
    if end not in (None, prepared.end_of_document_id):
        raise ConfigError(
            f"model.end_of_document_id ({end}) must be the tokenizer's "
            f"{prepared.end_of_document_id}; set model.end_of_document_id=null to take that"
        )
    if config.model.intra_document_mask:
        end = prepared.end_of_document_id
    model = dataclasses.replace(config.model, vocab_size=vocab_size, end_of_document_id=end)
    if config.match != "none":
        model = match_to_mha(model)
    return dataclasses.replace(config, model=model)


def describe_model(asked: GPTConfig, model: GPTConfig) -> str:
    """Return a model's cost compared with MHA's, and what its arrangement does not do at this size.

    Args:
        asked: The model before its MLP was matched to MHA's parameters.
        model: What is trained.
    """
    baseline = mha_baseline(dataclasses.replace(asked, vocab_size=model.vocab_size))
    return "\n".join([*remarks(model), budget_sheet(model, baseline)])
