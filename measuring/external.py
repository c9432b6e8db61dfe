"""Models that kvlab did not train, measured by the protocol of its runs and on their text."""

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from measuring.decode import Step
from measuring.errors import BrokenWeights, EvaluationError
from measuring.external_text import Reader, Text, encoded
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
from measuring.rows import EvaluatedRun, ResultRow, positions_of, protocol_card, quality_of
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


def evaluate_external(
    reader: Reader,
    model: ExternalModel | GPT,
    text: Text,
    split: str,
    settings: EvalSettings,
    device: torch.device,
) -> EvaluatedRun:
    """Score a model on a text and measure its cache, as `evaluate.evaluate_run` does a run.

    With the tokenizer of a prepared corpus it reads that corpus' tokens, and its card is that of
    the runs; with another it reads the same documents in its own tokens.

    Args:
        reader: Its name and its tokenizer.
        model: In evaluation mode; in another library's modules or in kvlab's.
        text: What to score.
        split: Its split.
        settings: How to score it.
        device: Where the model is.

    Raises:
        EvaluationError: If it cannot be scored so.
        ValueError: If it cannot decode, from the model.
    """
    prepared, usual = text.as_read_by(reader)
    measured: _InKvlabModules | _InOwnModules = (
        _InKvlabModules(model, settings)
        if isinstance(model, GPT)
        else _InOwnModules(model, settings)
    )
    known, config = measured.max_position_embeddings, measured.config
    usual = usual or DEFAULT_CONTEXT
    context = settings.context or min(usual, known or usual)
    usual = text.cache_context or context
    cache_context = settings.cache_context or min(usual, known or usual)

    def limits(otherwise: int) -> GPTConfig:
        """Return as much of a configuration as decides what the model can be shown."""
        positions = "learned" if measured.is_bound else "none"
        return GPTConfig(max_position_embeddings=known or otherwise, position_embedding=positions)

    asked = dataclasses.replace(settings, context=context)
    context, stride = windows_for(asked, limits(context))
    cache_context_for(settings, limits(cache_context))
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
        intra_document_mask=config is not None and config.intra_document_mask,
    )
    if not reader.has_tokenizer_of(prepared):
        stream, notes = encoded(reader, prepared, split)
        card |= {
            "data_fingerprint": stream.fingerprint(reader.tokenizer_sha256),
            "tokenizer_sha256": reader.tokenizer_sha256,
            "tokens": len(stream),
        }
    windows = None
    if settings.perplexity:
        windows = _score(reader, measured.scorer, stream, (context, stride), settings, device)
    of_cache, problems = measured.measure_cache(cache_context)
    row = ResultRow(
        run_name=reader.name,
        attention=reader.kind,
        positions=measured.positions,
        num_parameters=measured.num_parameters,
        split=split,
        **quality_of(windows, prepared.splits[split]),
        **of_cache,
        reads_whole_text=not notes,
        protocol=card,
    )
    has_to_be_timed = settings.decode_speed.batch_sizes and settings.decode_speed.contexts
    return EvaluatedRun(
        row.as_dict(),
        config,
        windows,
        settings={"hf": reader.name},
        curve={"tokens": [], "perplexity": []},
        sample=None,
        notes=[*notes, *(f"{reader.name}: {problem}" for problem in problems)],
        prepared=prepared,
        decodable=None if isinstance(model, GPT) or not has_to_be_timed else model,
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
        self._settings = settings

    def measure_cache(self, context: int) -> tuple[dict[str, Any], list[str]]:
        """Return the keys of a row about the cache, when it holds `context` tokens a sequence.

        What was scored is kept where the library's decoding fails: all of them are None, and a
        line says why.

        Raises:
            EvaluationError: If it fails and nothing was scored.
        """
        model, batch = self._model, self._settings.cache_batch_size
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
            problem = f"its cache and its decoding could not be measured ({reason})"
            if not self._settings.perplexity:
                raise EvaluationError(problem) from error
            unknown = dict.fromkeys((*CACHE_KEYS, "generation_peak_extra_bytes"))
            return unknown | {"kv_cache_context": context}, [problem]
        extra = total - round(batch * points[context])
        measured = CacheMeasurement(context, points, batch)
        return measured.as_row() | {"generation_peak_extra_bytes": extra}, []


class _InKvlabModules:
    """A model that was loaded into kvlab's modules, as a row wants it."""

    def __init__(self, model: GPT, settings: EvalSettings) -> None:
        self.config = model.config
        self.positions = positions_of(model.config)
        self.num_parameters = num_parameters(model.config).total
        self.max_position_embeddings = model.config.max_position_embeddings
        self.is_bound = model.config.position_embedding == "learned"
        self._cache_dtype = cache_dtype_of(settings.cache_dtype)
        self.scorer: Scorer = CachedScorer(model, self._cache_dtype) if settings.decode else model
        self._model = model
        self._batch_size = settings.cache_batch_size

    def measure_cache(self, context: int) -> tuple[dict[str, Any], list[str]]:
        """Return the keys of a row about the cache, when it holds `context` tokens a sequence."""
        model, batch, dtype = self._model, self._batch_size, self._cache_dtype
        row = measure_kv_cache(model, batch, context, dtype).as_row()
        # No text is longer than the model's own context.
        longest = min(context, self.max_position_embeddings)
        extra = measure_generation_memory(model, batch, longest, dtype)
        return row | {"generation_peak_extra_bytes": extra}, []


class _ThroughItsCache:
    """Scores token by token; a `perplexity.Scorer`."""

    def __init__(self, model: ExternalModel) -> None:
        self.token_nll = model.token_nll_through_cache


def _score(
    reader: Reader,
    scorer: Scorer,
    stream: Tokens,
    windows: tuple[int, int],
    settings: EvalSettings,
    device: torch.device,
) -> Score:
    try:
        with Bar(reader.name) as bar:
            watch = bar.count("scoring", "tokens")
            batch, end = settings.batch_size, reader.end_of_document_id
            return score(scorer, stream, *windows, batch, device, None, watch, end)
    except BrokenWeights as error:
        raise EvaluationError(
            f"{reader.name} gives likelihoods that are no numbers, or that none can hold; its "
            "weights are broken, or it was not made for float32"
        ) from error
