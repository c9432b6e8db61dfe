"""Reading a folder of transformers: config.json, safetensors and the tokenizer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from torch import Tensor

from data.sources.file_kinds import pointer_at
from data.tokenizing.pretrained import load_pretrained
from data.tokenizing.tokenizer import sha256_of_tokenizer
from files.disk import one_line
from files.errors import RunError
from files.regular_file import read_regular_file, require_regular_file
from files.strict_json import load_strict
from files.typed_json import typed
from interop.errors import InteropError
from interop.stock import Stock

T = TypeVar("T")
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
# An index of a hundred thousand weights takes some 10 MB.
_MAX_JSON_BYTES = 64 << 20


def read_stock(folder: Path) -> Stock:
    """Read config.json and the weights, which are safetensors in one file or several.

    Args:
        folder: Its files may be links, as they are in the cache of the Hub.

    Raises:
        InteropError: Naming the file that is missing or damaged.
    """
    config = read_config(folder)
    weights: dict[str, Tensor] = {}
    for name in weight_files(folder):
        for key, tensor in _read_weights(folder, name).items():
            if key in weights:
                raise InteropError(f"{folder / name} holds {key[:100]} once more")
            weights[key] = tensor
    return Stock(config, weights)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        InteropError: If it is missing or damaged, or names a file of weights of its own.
    """
    if not folder.is_dir():
        raise InteropError(f"there is no folder {folder}")
    if not (folder / CONFIG_NAME).exists() and (folder / "checkpoints").is_dir():
        raise InteropError(
            f"{folder} is a run, not a folder of transformers; write one of it with "
            f"python export_model.py run={folder.resolve().name} out=FOLDER"
        )
    config = _read_json(folder / CONFIG_NAME, dict[str, Any])
    # transformers follows it, also to an index that leaves the folder.
    if config.get("transformers_weights") is not None:
        raise InteropError(
            f"{folder / CONFIG_NAME}: transformers_weights names a file of weights; leave it out, "
            f"and call that file {WEIGHTS_NAME}"
        )
    return config


def tokenizer_sha256(folder: Path, key: str) -> str:
    """Return the hash of a folder's tokenizer as `data.tokenizer.save_tokenizer` stores it.

    Of a folder that was exported from a run it is `PreparedData.tokenizer_sha256` of its data.

    Args:
        folder: The folder.
        key: The setting that names it, for messages.

    Raises:
        DataError: If the folder has no tokenizer that kvlab can use.
    """
    return sha256_of_tokenizer(load_pretrained(str(folder), key).tokenizer)


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights.

    Raises:
        InteropError: If there are none, or the index names a file that is not in the folder.
    """
    if (folder / WEIGHTS_NAME).exists():
        return [WEIGHTS_NAME]
    index = folder / _INDEX_NAME
    if not index.exists():
        raise InteropError(
            f"{folder} has no {WEIGHTS_NAME} and no {_INDEX_NAME}; weights that are pickled "
            "(pytorch_model.bin) are not read: save the model with transformers once more"
        )
    names = sorted(set(_read_json(index, _Index).weight_map.values()))
    for name in names:
        is_plain = Path(name).name == name and name.isprintable()
        if not is_plain or not name.endswith(".safetensors"):
            raise InteropError(f"{index}: {name[:60]!r} is no safetensors file in that folder")
    return names


@dataclass(frozen=True)
class _Index:
    weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


def _read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file, which may be a link, as in the cache of the Hub.

    Raises:
        InteropError: If it is missing, damaged or of another shape.
    """
    try:
        value = load_strict(read_regular_file(link_target(path), _MAX_JSON_BYTES))
    except OSError as error:
        raise InteropError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        why = pointer_at(path) or f"is not valid JSON ({one_line(error)[:200]})"
        raise InteropError(f"{path} {why}") from error
    try:
        return typed(value, kind, path)
    except RunError as error:
        raise InteropError(str(error)) from error


def link_target(path: Path) -> Path:
    """Return what a link leads to; `Path.resolve` raises where that is itself."""
    return Path(os.path.realpath(path))


def _read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / name
    try:
        require_regular_file(link_target(path))
        return load_file(path)
    except OSError as error:
        raise InteropError(f"cannot read {path}: {one_line(error)[:200]}") from error
    except SafetensorError as error:
        reason = one_line(error)[:200]
        why = pointer_at(path) or f"is not a safetensors file, or is cut off ({reason})"
        raise InteropError(f"{path} {why}") from error
