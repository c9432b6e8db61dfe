"""A model as a folder of transformers, compared with kvlab's own before it gets its name."""

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data.prepared import TOKENIZER_FOLDER, PreparedData
from data.tokenizing.tokenizer import TOKENIZER_FILES
from files.atomic import write_json, write_text
from files.disk import require_free_bytes, write_failure
from files.regular_file import read_regular_file
from files.staging import staging_folder
from files.synced import fsync_file, fsync_folder
from guards.printable import printable
from interop.errors import InteropError
from interop.exporting.agreement import Agreement, compare
from interop.exporting.model_card import Origin, model_card
from interop.importing.folder import CONFIG_NAME, WEIGHTS_NAME
from interop.stock import DTYPES, Stock, to_stock
from modeling.config import GPTConfig

# Engines have no class of these whose output projection is the embedding: they want it in the file.
# The other families have one, whose readers may refuse a weight that they do not expect.
_TIED_WITH_COPY = ("deepseek_v2", "deepseek_v3")
# GPT-2's tokenizer has no unknown bytes, and its end of text in that place. Where none is named,
# classes that are its own add one, with an id that the model does not embed.
_UNKNOWN_IS_END = ("gpt2", "gpt_bigcode")
_MAX_TOKENIZER_BYTES = 2**28
_GENERATION_NAME = "generation_config.json"
_CARD_NAME = "README.md"


@dataclasses.dataclass(frozen=True)
class Exportable:
    """A model that is to be written.

    Args:
        config: The model.
        weights: Its state dict.
        prepared: Data whose tokenizer is the model's, and whose validation texts the two are
            compared on.
        origin: What the model card says of where it comes from.
    """

    config: GPTConfig
    weights: Mapping[str, Tensor]
    prepared: PreparedData
    origin: Origin


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        architecture: The class of transformers.
        agreement: How it compared with kvlab's.
    """

    architecture: str
    agreement: Agreement


def require_free_place(out: Path) -> None:
    """Refuse a place where something is already; an empty folder is nothing.

    Raises:
        InteropError: Naming it.
        WriteFailed: If it cannot be read.
    """
    with _explained(out):
        is_free = not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir()))
    if not is_free:
        raise InteropError(f"out ({out}) is there already; name another folder, or remove it")


def export(source: Exportable, out: Path, dtype: str, device: torch.device) -> Exported:
    """Write a model for transformers, load it there, and compare the two.

    The folder is written next to its place and gets its name once the model that transformers loads
    from it gives the logits of kvlab's, which holds the same rounded weights in float32, and its
    own `generate` with its own cache kvlab's greedy text.

    Args:
        source: What to write.
        out: The folder, which must not be there, or be empty: `require_free_place` says so before
            a model is loaded. Folders above it are made.
        dtype: That of the written weights: a key of `DTYPES`.
        device: Where the two are compared.

    Raises:
        InteropError: If no stock class expresses the model.
        ExportMismatch: If the two differ.
        WriteFailed: If it cannot be written.
        SystemExit: At SIGTERM or SIGHUP. In each case nothing is left.
    """
    end = source.prepared.end_of_document_id
    config = dataclasses.replace(source.config, end_of_document_id=end)
    weights = _rounded(source.weights, dtype)
    stock = to_stock(config, weights)
    with _ended_by_signals(), _staged(out) as folder:
        with _explained(out):
            _write_model(folder, stock, dtype)
            _write_tokenizer(folder, source.prepared, config.max_position_embeddings)
        agreement = compare(folder, config, weights, source.prepared, device)
        card = model_card(stock, config, source.prepared, source.origin, dtype, agreement)
        with _explained(out):
            write_text(folder / _CARD_NAME, printable(card))
            for path in folder.iterdir():
                fsync_file(path)
            fsync_folder(folder)
    return Exported(stock.config["architectures"][0], agreement)


def _rounded(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the weights as they are written.

    Raises:
        InteropError: If one is no number then.
    """
    found = {name: tensor.detach().cpu().to(DTYPES[dtype]) for name, tensor in weights.items()}
    for name, tensor in found.items():
        if not bool(tensor.isfinite().all()):
            way_out = "; set dtype=bfloat16" if dtype == "float16" else ""
            raise InteropError(f"weights {name} are not finite in {dtype}{way_out}")
    return found


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise, so that what was written is removed.

    Where one is ignored (nohup), or a launcher's own, it stays so. Threads other than the main one
    get no signals.

    Raises:
        SystemExit: At one of them, with the status that a shell gives to such an end.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    ours = [n for n in numbers if in_main_thread and signal.getsignal(n) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, _leave)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise SystemExit(128 + number)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a folder for what goes to `out`, and move it there at the end; after an error, nothing.

    Raises:
        WriteFailed: If it cannot be made or moved.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        with staging_folder(out) as temporary:
            yield temporary
            with _explained(out):
                temporary.rename(out)
                fsync_folder(out.parent)
    finally:
        for parent in made:
            with suppress(OSError):  # where it holds what was written
                parent.rmdir()


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Say in one line what could not be written.

    Raises:
        WriteFailed: In place of the system's own error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise write_failure(out, error) from error


def _write_model(folder: Path, stock: Stock, dtype: str) -> None:
    """Write config.json, generation_config.json and the weights."""
    import transformers

    weights = {name: tensor.contiguous() for name, tensor in stock.weights.items()}
    if stock.config["model_type"] in _TIED_WITH_COPY and stock.config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    require_free_bytes(folder, size)
    version = {"transformers_version": transformers.__version__}
    write_json(folder / CONFIG_NAME, stock.config | {"dtype": dtype} | version)
    end = stock.config["eos_token_id"]
    # Greedy, as `generate` is where this file says nothing: the text that was compared. Padding
    # with the end is what `generate` does with a warning where no token is named.
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    write_json(folder / _GENERATION_NAME, generation | {"do_sample": False} | version)
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # safetensors makes its files private to the user.
    (folder / WEIGHTS_NAME).chmod((folder / CONFIG_NAME).stat().st_mode)


def _write_tokenizer(folder: Path, prepared: PreparedData, context: int) -> None:
    """Write the data's tokenizer such that AutoTokenizer encodes as kvlab does.

    Args:
        folder: The model's, which holds config.json already.
        prepared: The data.
        context: Most tokens of a text.
    """
    prepared.tokenizer()  # refuses files that are not those of the data
    origin = prepared.folder / TOKENIZER_FOLDER
    whole, settings = (read_regular_file(origin / n, _MAX_TOKENIZER_BYTES) for n in TOKENIZER_FILES)
    (folder / TOKENIZER_FILES[0]).write_bytes(whole)
    # Text that looks like the token that ends a document is text.
    changes: dict[str, Any] = {"model_max_length": context, "split_special_tokens": True}
    written = json.loads(settings)
    unknown = _unknown_token(json.loads(whole)["model"])
    model_type = json.loads((folder / CONFIG_NAME).read_bytes())["model_type"]
    if unknown is None and model_type in _UNKNOWN_IS_END:
        unknown = written["eos_token"]
    if unknown is not None:
        changes["unk_token"] = unknown
    write_json(folder / TOKENIZER_FILES[1], written | changes)


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the token that a tokenizer.json's model has for what it does not know, if any."""
    if model.get("unk_id") is not None:  # Unigram
        return str(model["vocab"][model["unk_id"]][0])
    token = model.get("unk_token")
    return token if isinstance(token, str) and token in model.get("vocab", {}) else None
