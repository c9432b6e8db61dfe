"""Models that kvlab did not train, measured by the protocol of its runs and on their text."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.inspection import split_documents
from data.prepared import PreparedData
from measuring.decode import Step
from measuring.errors import BrokenWeights, EvaluationError
from measuring.kv_cache import (
    CACHE_KEYS,
    CacheMeasurement,
    contexts_to_measure,
    measure_generation_memory,
    measure_kv_cache,
)
from measuring.machine import peak_extra_bytes
from measuring.numerics import device_class
from measuring.perplexity import Score, Scorer, Tokens, score
from measuring.rows import EvaluatedRun, positions_of, protocol_card, quality_of
from measuring.through_cache import CachedScorer
from measuring.windows import cache_context_for, windows_for
from modeling.accounting import num_parameters
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import cache_dtype_of
from settings.evaluation import EvalSettings
from tracking.failures import is_out_of_memory
from tracking.progress import Bar

DEFAULT_CONTEXT = 1024
"""Where neither a run nor the model says one."""


class TextTokenizer(Protocol):
    """What turns text into ids, such as `tokenizers.Tokenizer`."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return an object whose `ids` are the tokens."""
        ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token."""
        ...


class ExternalModel(Protocol):
    """A causal language model of another library's modules, in evaluation mode, float32."""

    positions: str
    """How it encodes positions."""
    num_parameters: int
    """Each once."""
    max_position_embeddings: int | None
    """Tokens of the longest text that it was made for; None if it says none."""
    is_bound: bool
    """Whether it cannot be shown more than those."""
    window: int | None
    """Tokens that its window layers see; None if it has none."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s]."""
        ...

    def token_nll_through_cache(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the same, token by token through its own cache."""
        ...

    def generate(self, batch_size: int, context_length: int) -> int:
        """Decode until its cache holds so many tokens; return the bytes of the live cache."""
        ...

    def decode_step(self, batch: int, context: int) -> Step:
        """Return a step that can be timed.

        Raises:
            ValueError: Saying why the model has none.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an external model is, and how it reads text.

    Args:
        name: As it is shown; no run is called so.
        kind: What stands in the place of a run's attention.
        tokenizer: Its own.
        tokenizer_sha256: Of it, as `data.tokenizer.save_tokenizer` stores it.
        end_of_document: The token to put behind each document.
    """

    name: str
    kind: str
    tokenizer: TextTokenizer
    tokenizer_sha256: str
    end_of_document: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A split's original text, and who has read it.

    Args:
        readings: Prepared corpora of this text, each with the context in which it was read; None
            where nobody says one.
        cache_context: Tokens at which the caches of those who read it are stated; None where nobody
            says so, or they differ.
    """

    readings: list[tuple[PreparedData, int | None]]
    cache_context: int | None = None

    def as_read_by(self, origin: Origin) -> tuple[PreparedData, int | None]:
        """Return the reading with a model's tokenizer; the first if there is none."""
        for prepared, context in self.readings:
            if _has_tokenizer_of(prepared, origin):
                return prepared, context
        return self.readings[0]


def _has_tokenizer_of(prepared: PreparedData, origin: Origin) -> bool:
    end = origin.tokenizer.token_to_id(origin.end_of_document)
    same = prepared.tokenizer_sha256 == origin.tokenizer_sha256
    return same and prepared.end_of_document_id == end


def texts_of(runs: Iterable[EvaluatedRun], split: str) -> list[Text]:
    """Return each text that runs were scored on, once, whatever their tokenizers."""
    found: dict[tuple[Any, ...], list[tuple[PreparedData, dict[str, Any]]]] = {}
    for run in runs:
        assert run.prepared is not None
        prepared = run.prepared
        counts = prepared.splits[split]
        key = (prepared.name, prepared.revision, counts.documents, counts.words, counts.utf8_bytes)
        found.setdefault(key, []).append((prepared, run.row["protocol"]))
    texts = []
    for some in found.values():
        stated = {card.get("cache_context") for _, card in some}
        readings = [(prepared, card["context"]) for prepared, card in some]
        texts.append(Text(readings, stated.pop() if len(stated) == 1 else None))
    return texts


def evaluate_external(
    origin: Origin,
    model: "ExternalModel | GPT",
    text: Text,
    split: str,
    settings: EvalSettings,
    device: torch.device,
) -> EvaluatedRun:
    """Score a model on a text and measure its cache, as `evaluate.evaluate_run` does a run.

    With the tokenizer of a prepared corpus it reads that corpus' tokens, and its card is that of
    the runs; with another it reads the same documents in its own tokens.

    Args:
        origin: What it is.
        model: In evaluation mode; in another library's modules or in kvlab's.
        text: What to score.
        split: Of it.
        settings: How.
        device: Where the model is.

    Raises:
        EvaluationError: If it cannot be scored so.
        ValueError: If it cannot decode, from the model.
    """
    prepared, usual = text.as_read_by(origin)
    found = (
        _InKvlabModules(model, settings)
        if isinstance(model, GPT)
        else _InOwnModules(model, settings)
    )
    context, stride = _windows(settings, found, usual)
    cache_context = _cache_context(settings, found, text.cache_context or context)
    notes: list[str] = []
    stream: Tokens = prepared.stream(split)  # refuses a split that is not there
    card = protocol_card(
        prepared,
        split,
        (context, stride),
        cache_context,
        settings,
        dtype="float32",
        device=device_class(device),
        intra_document_mask=found.config is not None and found.config.intra_document_mask,
    )
    if not _has_tokenizer_of(prepared, origin):
        tokens, notes = _encoded(origin, prepared, split)
        stream = EncodedText(tokens)
        card |= {
            "data_fingerprint": stream.fingerprint(origin.tokenizer_sha256),
            "tokenizer_sha256": origin.tokenizer_sha256,
            "tokens": len(stream),
        }
    windows = None
    if settings.perplexity:
        windows = _score(origin, found.scorer, stream, (context, stride), settings, device)
    of_cache = found.measure_cache(cache_context)
    reads_whole_text = not notes
    if found.problem is not None:
        notes.append(f"{origin.name}: {found.problem}")
    row = {
        "run_name": origin.name,
        "attention": origin.kind,
        "layers": None,
        "positions": found.positions,
        "seed": None,
        "num_parameters": found.num_parameters,
        "tokens_trained": None,
        "split": split,
        **quality_of(windows, prepared.splits[split]),
        **of_cache,
        **dict.fromkeys(_OF_A_TRAINING),
        "reads_whole_text": reads_whole_text,
        "protocol": card,
    }
    has_to_be_timed = settings.decode_speed.batch_sizes and settings.decode_speed.contexts
    return EvaluatedRun(
        row,
        found.config,
        windows,
        settings={"hf": origin.name},
        curve={"tokens": [], "perplexity": []},
        sample=None,
        notes=notes,
        prepared=prepared,
        decodable=None if isinstance(model, GPT) or not has_to_be_timed else model,
    )


_OF_A_TRAINING = (
    *("train_tokens_per_second", "train_peak_memory_bytes", "train_wall_seconds"),
    *("versions", "git_commit", "trained_with"),
)


class _InOwnModules:
    """A model of another library as a row wants it."""

    config = None

    def __init__(self, model: ExternalModel, settings: EvalSettings) -> None:
        if settings.cache_dtype not in (None, "float32"):
            raise EvaluationError(
                f"eval.cache_dtype={settings.cache_dtype}: a model in transformers' modules caches "
                "float32; leave it out, or set hf_modules=kvlab"
            )
        self.positions = model.positions
        self.num_parameters = model.num_parameters
        self.max_position_embeddings = model.max_position_embeddings
        self.is_bound = model.is_bound
        self.scorer: Scorer = _ThroughItsCache(model) if settings.decode else model
        self._model = model
        self._batch_size = settings.cache_batch_size
        self._is_scored = settings.perplexity
        self.problem: str | None = None

    def measure_cache(self, context: int) -> dict[str, Any]:
        """Return the keys of a row about the cache, when it holds `context` tokens a sequence.

        What was scored is kept where the library's decoding fails: all of them are None, and
        `problem` says why.

        Raises:
            EvaluationError: If it fails and nothing was scored.
        """
        model, batch = self._model, self._batch_size
        longest = self.max_position_embeddings if self.is_bound else None
        contexts = contexts_to_measure(context, model.window, longest)
        try:
            # `generate` takes a prompt and a token at least.
            points = {
                t: model.generate(batch, t) / batch for t in contexts if t > 1 or t == context
            }
            total = peak_extra_bytes(lambda: model.generate(batch, context), model.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.problem = f"its cache and its decoding could not be measured ({reason})"
            if not self._is_scored:
                raise EvaluationError(self.problem) from error
            unknown = dict.fromkeys((*CACHE_KEYS, "generation_peak_extra_bytes"))
            return unknown | {"kv_cache_context": context}
        extra = total - round(batch * points[context])
        measured = CacheMeasurement(context, points, batch)
        return measured.as_row() | {"generation_peak_extra_bytes": extra}


class _InKvlabModules:
    """A model that was loaded into kvlab's modules, as a row wants it."""

    problem = None

    def __init__(self, model: GPT, settings: EvalSettings) -> None:
        self.config = model.config
        self.positions = positions_of(model.config)
        self.num_parameters = num_parameters(model.config).total
        self.max_position_embeddings: int | None = model.config.max_position_embeddings
        self.is_bound = model.config.position_embedding == "learned"
        self._cache_dtype = cache_dtype_of(settings.cache_dtype)
        self.scorer: Scorer = CachedScorer(model, self._cache_dtype) if settings.decode else model
        self._model = model
        self._batch_size = settings.cache_batch_size

    def measure_cache(self, context: int) -> dict[str, Any]:
        """Return the keys of a row about the cache, when it holds `context` tokens a sequence."""
        model, batch, dtype = self._model, self._batch_size, self._cache_dtype
        row = measure_kv_cache(model, batch, context, dtype).as_row()
        # No text is longer than the model's own context.
        longest = min(context, self.config.max_position_embeddings)
        extra = measure_generation_memory(model, batch, longest, dtype)
        return row | {"generation_peak_extra_bytes": extra}


class _ThroughItsCache:
    """Scores token by token; a `perplexity.Scorer`."""

    def __init__(self, model: ExternalModel) -> None:
        self._model = model

    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s]."""
        return self._model.token_nll_through_cache(tokens, targets)


def _windows(
    settings: EvalSettings, model: _InOwnModules | _InKvlabModules, usual: int | None
) -> tuple[int, int]:
    """Return context and stride: the runs' where the model sees that far, else its own."""
    known = model.max_position_embeddings
    usual = usual or DEFAULT_CONTEXT
    context = settings.context or min(usual, known or usual)
    limits = GPTConfig(
        max_position_embeddings=known or context,
        position_embedding="learned" if model.is_bound else "none",
    )
    return windows_for(dataclasses.replace(settings, context=context), limits)


def _cache_context(
    settings: EvalSettings, model: _InOwnModules | _InKvlabModules, usual: int
) -> int:
    """Return where the cache is stated: where the runs' is if the model sees that far."""
    known = model.max_position_embeddings
    if settings.cache_context is None:
        return min(usual, known or usual)
    limits = GPTConfig(
        max_position_embeddings=known or settings.cache_context,
        position_embedding="learned" if model.is_bound else "none",
    )
    return cache_context_for(settings, limits)


def _score(
    origin: Origin,
    scorer: Scorer,
    stream: Tokens,
    windows: tuple[int, int],
    settings: EvalSettings,
    device: torch.device,
) -> Score:
    try:
        end = origin.tokenizer.token_to_id(origin.end_of_document)
        with Bar(origin.name) as bar:
            watch = bar.count("scoring", "tokens")
            return score(scorer, stream, *windows, settings.batch_size, device, None, watch, end)
    except BrokenWeights as error:
        raise EvaluationError(
            f"{origin.name} gives likelihoods that are no numbers, or that none can hold; its "
            "weights are broken, or it was not made for float32"
        ) from error


class EncodedText:
    """Tokens in memory; `perplexity.Tokens`.

    Args:
        tokens: [n] int64.
    """

    def __init__(self, tokens: npt.NDArray[np.int64]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Return tokens [start, start + length), int64."""
        return self._tokens[start : start + length]

    def fingerprint(self, tokenizer_sha256: str) -> str:
        """Return the hash of all that a model sees of them."""
        digest = hashlib.sha256(tokenizer_sha256.encode())
        digest.update(self._tokens.tobytes())
        return digest.hexdigest()


def _encoded(
    origin: Origin, prepared: PreparedData, split: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Read the documents of a prepared split in another tokenizer's tokens.

    Returns:
        The tokens, and what a reader of their numbers should know.

    Raises:
        EvaluationError: If the prepared tokens are not the whole text.
    """
    theirs = prepared.tokenizer()
    end = origin.tokenizer.token_to_id(origin.end_of_document)
    parts: list[npt.NDArray[np.int64]] = []
    utf8_bytes = changed = 0
    for document in split_documents(prepared.stream(split), prepared.end_of_document_id):
        text = theirs.decode(document.tolist(), skip_special_tokens=False)
        utf8_bytes += len(text.encode())
        ids = origin.tokenizer.encode(text, add_special_tokens=False).ids
        parts.append(np.array([*ids, end], dtype=np.int64))
        # Some put a space before a text, or take the one that is there.
        given_back = origin.tokenizer.decode(ids, skip_special_tokens=False)
        changed += given_back not in (text, f" {text}", text.removeprefix(" "))
    expected = prepared.splits[split].utf8_bytes
    if utf8_bytes != expected:
        raise EvaluationError(
            f"{origin.name} cannot be scored on {prepared.folder}: its tokens decode to "
            f"{utf8_bytes:,} bytes, and the text had {expected:,}, so its tokenizer loses some; "
            "prepare the text with tokenizer=bpe or tokenizer=bytes, or give the model's own"
        )
    notes = [
        f"{origin.name}: its tokenizer does not give back {changed} of {len(parts)} documents as "
        "they were, and what it leaves out costs it nothing: no bits per byte are compared with its"
    ]
    return np.concatenate(parts), notes if changed else []
