"""Weights for a training to begin with, from a folder of transformers."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.prepared import PreparedData
from files.regular_file import sha256_of_file
from interop.errors import InteropError
from interop.importing.folder import (
    CONFIG_NAME,
    link_target,
    read_stock,
    tokenizer_sha256,
    weight_files,
)
from interop.stock import from_stock
from modeling.config import GPTConfig


@dataclasses.dataclass(frozen=True)
class InitialModel:
    """What a training begins with.

    Args:
        config: The model, which the folder decides, but for what `initial_model` says.
        weights: Its state dict, float32.
    """

    config: GPTConfig
    weights: Mapping[str, Tensor]


def initial_model(folder: Path, asked: GPTConfig) -> InitialModel:
    """Read a model of a family that kvlab has, to train it further.

    Args:
        folder: config.json and safetensors, as `export_model.py` and transformers write them.
        asked: The configuration of the training, of which the context (max_position_embeddings),
            intra_document_mask and the attention's dropout hold; all else is the folder's, whose
            name is the model's.

    Raises:
        InteropError: If the folder's model is none of kvlab's, or cannot see the context.
    """
    stock = read_stock(folder)
    config, weights = from_stock(stock.config, stock.weights)
    context = asked.max_position_embeddings
    if config.position_embedding == "learned" and context != config.max_position_embeddings:
        raise InteropError(
            f"init_from ({folder}) has learned {config.max_position_embeddings} positions; set "
            f"model.max_position_embeddings={config.max_position_embeddings}, not {context}"
        )
    dropout = {"attention_dropout": asked.attention.get("attention_dropout", 0.0)}
    others = {name: fields | dropout for name, fields in config.layers.attentions.items()}
    config = dataclasses.replace(
        config,
        name=folder.resolve().name,
        max_position_embeddings=context,
        intra_document_mask=asked.intra_document_mask,
        end_of_document_id=asked.end_of_document_id,
        attention=config.attention | dropout,
        layers=dataclasses.replace(config.layers, attentions=others),
    )
    return InitialModel(config, {name: tensor.float() for name, tensor in weights.items()})


def sha256_of_model(folder: Path) -> str:
    """Return the hash of a folder's config.json and weights."""
    digest = hashlib.sha256()
    for name in [CONFIG_NAME, *weight_files(folder)]:
        digest.update(sha256_of_file(link_target(folder / name)).encode())
    return digest.hexdigest()


def recorded_model(recorded: Mapping[str, Any]) -> GPTConfig:
    """Return the model of a run from its config.yaml, as `tracking.configuration` reads it."""
    nested: dict[str, Any] = {}
    for key, value in recorded.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    layers = {"layers": nested["layers"]} if "layers" in nested else {}  # once there were none
    return GPTConfig(**nested["model"], **layers)


def require_same_tokenizer(
    folder: Path, model: GPTConfig, prepared: PreparedData, key: str, what_to_do: str
) -> None:
    """Refuse data whose tokens are not those that the folder's model knows.

    Args:
        folder: The model's.
        model: What it describes.
        prepared: The data.
        key: The setting that names the folder.
        what_to_do: For the message.

    Raises:
        InteropError: If the folder's tokenizer is another, or has more tokens than its model.
        DataError: If it has none.
    """
    if tokenizer_sha256(folder, key) != prepared.tokenizer_sha256:
        raise InteropError(
            f"the tokens of {prepared.folder} are not those of the model in {folder}; {what_to_do}"
        )
    if model.vocab_size is not None and model.vocab_size < prepared.vocab_size:
        raise InteropError(
            f"{key} ({folder}): its tokenizer has {prepared.vocab_size} tokens, and its model only "
            f"{model.vocab_size}; they do not belong together"
        )
