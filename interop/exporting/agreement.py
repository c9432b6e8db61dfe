"""A written folder, compared with kvlab's own model: tokens, logits, greedy text and cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.inspection import split_documents
from data.prepared import PreparedData
from data.splits import VALIDATION
from interop.errors import ExportMismatch
from interop.library import silenced
from interop.transformers_model import live_bytes
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


@dataclass(frozen=True)
class Agreement:
    """How a written model compared with kvlab's.

    Args:
        documents: How many texts.
        positions: At how many positions their logits were compared.
        new_tokens: How many tokens of greedy text were equal.
        difference: The largest of a logit.
        tolerance: What it might have been.
        cache_bytes: What transformers' own cache takes behind a text, float32.
        cache_tokens: Tokens of that text.
    """

    documents: int
    positions: int
    new_tokens: int
    difference: float
    tolerance: float
    cache_bytes: int
    cache_tokens: int


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
        config: The configuration of kvlab's model.
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

    Where two tokens are equally likely up to rounding, either may come next, and what follows is
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
