"""A model as a folder of transformers, compared with kvlab's own before it gets its name."""

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data.inspection import split_documents
from data.prepared import TOKENIZER_FOLDER, PreparedData
from data.sources import VALIDATION
from data.tokenizer import TOKENIZER_FILES
from files.atomic import write_json, write_text
from files.disk import require_free_bytes, write_failure
from files.regular_file import read_regular_file
from files.staging import staging_folder
from files.synced import fsync_file, fsync_folder
from guards.printable import printable
from interop.errors import ExportMismatch, InteropError
from interop.folders import CONFIG_NAME, WEIGHTS_NAME
from interop.hugging_face import live_bytes
from interop.layouts import DTYPES, Stock, to_stock
from interop.model_card import Agreement, Origin, model_card
from interop.transformers_output import silenced
from modeling.config import GPTConfig, SamplingSettings
from modeling.generate import generate
from modeling.gpt import GPT

_PROMPTS = 4
_NEW_TOKENS = 32
# Of a document: so many tokens are compared at most.
_COMPARED_TOKENS = 512
# Roundings of the largest logit that the two may differ by, and more for each position, since
# transformers computes RoPE's angles in float32. Measured: up to 10 in all at 256 positions; a
# permuted or missing row makes a hundred thousand.
_ROUNDINGS = 256
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
class Source:
    """A model that is to be written.

    Args:
        config: Of the model.
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


def export(source: Source, out: Path, dtype: str, device: torch.device) -> Exported:
    """Write a model for transformers, load it there, and compare the two.

    The folder is written beside its place and gets its name once the model that transformers loads
    from it gives the logits of kvlab's, which holds the same rounded weights in float32, and its
    own `generate` with its own cache kvlab's greedy text.

    Args:
        source: What to write.
        out: The folder, which must not be there, or be empty: `require_free_place` says so before
            a model is loaded. Folders above it are made.
        dtype: Of the written weights: a key of `DTYPES`.
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
        folder: Of the model, whose config.json is there.
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


def compare(
    folder: Path,
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    prepared: PreparedData,
    device: torch.device,
) -> Agreement:
    """Load a folder with transformers and compare it with kvlab's model, on validation texts.

    Args:
        folder: What was written.
        config: Of kvlab's model.
        weights: Its state dict, rounded as it was written.
        prepared: The texts.
        device: Where both compute, in float32.

    Raises:
        ExportMismatch: If tokens, logits or greedy text differ.
    """
    ours = GPT(config)
    ours.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    ours = ours.to(device).eval()
    theirs = _loaded(folder).to(device).eval()
    documents = _documents(prepared)
    context = config.max_position_embeddings
    _compare_tokens(folder, prepared, documents, context)
    compared = min(context, _COMPARED_TOKENS)
    new = min(_NEW_TOKENS, max(context // 2, 1))
    difference = tolerance = 0.0
    positions = tokens = 0
    for number, document in enumerate(documents):
        text = torch.tensor([document[:compared]], device=device)
        apart, allowed = _compare_logits(ours, theirs, text)
        difference, tolerance = max(difference, apart), max(tolerance, allowed)
        positions += text.shape[1]
        # Of different lengths, and each with room for what follows.
        prompt = text[:, : max((compared - new) >> number, 1)]
        tokens += _compare_greedy(ours, theirs, prompt, new, allowed)
    return Agreement(
        documents=len(documents),
        positions=positions,
        new_tokens=tokens,
        difference=difference,
        tolerance=tolerance,
        cache_bytes=_cache_bytes(theirs, text),
        cache_tokens=text.shape[1],
    )


@torch.no_grad()
def _cache_bytes(theirs: Any, text: Tensor) -> int:
    """Return what transformers' own cache takes of memory behind a text [1, s].

    The last token is fed alone, as in decoding: behind a whole prompt the storages of a window
    layer still hold all of it.
    """
    cache = None
    for part in text.split([text.shape[1] - 1, 1], dim=1):
        if part.shape[1]:
            cache = theirs(part, past_key_values=cache, use_cache=True).past_key_values
    return live_bytes(cache)


def _loaded(folder: Path) -> Any:
    """Load the folder's model as a user of transformers would, in float32.

    Raises:
        ExportMismatch: If its weights are not those that the class has.
    """
    from transformers import AutoModelForCausalLM

    with silenced():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, info = loaded
    if wrong := {what: sorted(names)[:3] for what, names in info.items() if names}:
        raise ExportMismatch(f"transformers did not find the weights that it needs: {wrong}")
    return model


def _documents(prepared: PreparedData) -> list[list[int]]:
    """Return the first documents of the validation split, or their starts."""
    documents = split_documents(prepared.stream(VALIDATION), prepared.end_of_document_id)
    whole = (document for document in documents if len(document))
    return [document[: 2 * _COMPARED_TOKENS].tolist() for document in islice(whole, _PROMPTS)]


def _compare_tokens(
    folder: Path, prepared: PreparedData, documents: list[list[int]], context: int
) -> None:
    """Compare what AutoTokenizer makes of texts with what kvlab makes of them.

    Raises:
        ExportMismatch: If they differ.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    ours = prepared.tokenizer()
    # A letter has up to 4 bytes; transformers complains of more tokens than the context.
    texts = [ours.decode(document)[: context // 4] for document in documents]
    texts.append(f"a{theirs.eos_token}b")
    for text in texts:
        if theirs(text)["input_ids"] != ours.encode(text).ids:
            raise ExportMismatch(
                f"transformers' tokenizer encodes {text[:40]!r} otherwise than kvlab's"
            )


@torch.no_grad()
def _compare_logits(ours: GPT, theirs: Any, text: Tensor) -> tuple[float, float]:
    """Compare the logits at every position; return the largest difference and what it may be.

    Raises:
        ExportMismatch: If it is larger.
    """
    expected, found = ours(text), theirs(text).logits
    rounding = torch.finfo(torch.float32).eps * float(expected.abs().max())
    tolerance = (_ROUNDINGS + text.shape[1]) * rounding
    difference = float((expected - found).abs().max())
    if not difference <= tolerance:
        raise ExportMismatch(
            f"the logits of the model that transformers loads differ by {difference:.1e} from "
            f"kvlab's, more than rounding can ({tolerance:.1e})"
        )
    return difference, tolerance


@torch.no_grad()
def _compare_greedy(ours: GPT, theirs: Any, prompt: Tensor, new: int, tolerance: float) -> int:
    """Compare greedy texts up to the document's end; return how many tokens were equal.

    Where two tokens are as likely as rounding can tell, either may come next, and what follows is
    another text: nothing is compared beyond.

    Raises:
        ExportMismatch: If another token comes.
    """
    end = ours.config.end_of_document_id
    assert end is not None
    steps = generate(ours, prompt, new, SamplingSettings(temperature=0.0), stop_token=end)
    expected = [int(token) for token in steps]
    if len(expected) < new:
        expected.append(end)
    out = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False
    )
    found = out[0, prompt.shape[1] :].tolist()
    equal = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    if equal == len(expected) == len(found):
        return equal
    if equal < min(len(expected), len(found)):
        before = torch.cat((prompt, prompt.new_tensor([expected[:equal]])), dim=1)
        logits = ours.next_logits(before)[0]
        chosen = logits[[expected[equal], found[equal]]]
        if float(logits.max() - chosen.min()) <= 2 * tolerance:
            return equal
    raise ExportMismatch(
        f"transformers' generate continues a prompt of {prompt.shape[1]} tokens otherwise than "
        f"kvlab from its new token {equal + 1} on: {found[equal : equal + 3]}, not "
        f"{expected[equal : equal + 3]}"
    )
