"""How long a decoding step takes: batches and contexts, all models in turns, with the roofline.

Timing needs no quality: caches are filled with random numbers instead of a text, and contexts may
be longer than those that a model was trained on.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from files.sizes import in_units
from measuring.errors import EvaluationError
from measuring.machine import (
    MEMORY_SHARE,
    available_bytes,
    measure_memory_bandwidth,
    peak_extra_bytes,
    synchronize,
)
from modeling.accounting import kv_cache_bytes, kv_cache_bytes_read
from modeling.gpt import GPT
from modeling.kv_cache import KVCache
from settings.evaluation import DecodeSettings
from tracking.progress import Bar

_WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class DecodePoint:
    """A model's decoding step at a batch and a context.

    Args:
        batch: Sequences decoded together.
        context: Tokens of each in the cache before the step.
        ms_per_token: Median milliseconds of a step, which gives every sequence a token.
        ms_by_round: What it is the median of; a round's turn is the median of its steps.
        tokens_per_second: batch / step.
        cache_bytes: Bytes of the caches of `context` tokens, all sequences.
        cache_bytes_read: What a step reads of them: layers that share a cache read it once each.
        roofline_ms: What reading the weights and those bytes takes at the measured bandwidth.
        memory_bandwidth: Bytes per second, measured by reading.
        peak_extra_bytes: Most memory that a step takes beyond weights and cache.
        beyond_trained: Whether the model was trained on shorter contexts only.
    """

    batch: int
    context: int
    ms_per_token: float
    ms_by_round: list[float]
    tokens_per_second: float
    cache_bytes: int
    cache_bytes_read: int
    roofline_ms: float
    memory_bandwidth: float
    peak_extra_bytes: int
    beyond_trained: bool

    def as_row(self) -> dict[str, Any]:
        """Return it as results.json keeps it."""
        return asdict(self)


class Step(Protocol):
    """A decoding step that can be timed again and again, such as `DecodeStep`."""

    batch: int
    """Sequences decoded together."""
    context: int
    """Tokens of each in the cache before the step."""
    cache_bytes: int
    """Bytes that those tokens take in the cache."""
    cache_bytes_read: int
    """Bytes that a step reads of it."""
    weight_bytes: int
    """Bytes of the weights that a step reads."""
    beyond_trained: bool
    """Whether the model was trained on shorter contexts only."""

    def __call__(self) -> Tensor:
        """Return the logits [b, n] behind one more token, and forget it."""
        ...


class Decodable(Protocol):
    """A model of another library whose decoding step can be timed."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def decode_step(self, batch: int, context: int) -> Step:
        """Return a step behind `context` tokens.

        Raises:
            ValueError: Saying why the model has none.
        """
        ...


@torch.no_grad()
def measure_decode(
    models: Mapping[str, GPT],
    settings: DecodeSettings,
    cache_dtype: torch.dtype | None,
    say: Callable[[str], None],
    others: Mapping[str, tuple[Decodable, Callable[[int], float]]] | None = None,
) -> dict[str, list[DecodePoint]]:
    """Time a decoding step of every model at every batch and context.

    In each round every model has a turn, so that a busy machine slows all alike.

    Args:
        models: By name; in evaluation mode, all on one device.
        settings: Batches, contexts, rounds and steps.
        cache_dtype: What the caches store; each model's own if None.
        say: Receives one line for each point that memory has no room for, or that a model of
            another library cannot be timed at.
        others: Models of other libraries, by other names and on the same device, each with the
            bytes of a sequence's cache by its tokens.

    Returns:
        The points of each model; those without room are missing in all.
    """
    others = others or {}
    devices = [model.embed_tokens.weight.device for model in models.values()]
    device = [*devices, *(model.device for model, _ in others.values())][0]
    bandwidth = measure_memory_bandwidth(device)
    found: dict[str, list[DecodePoint]] = {name: [] for name in [*models, *others]}
    of_others = [cache_bytes for _, cache_bytes in others.values()]
    points = list(itertools.product(sorted(settings.batch_sizes), sorted(settings.contexts)))
    rounds_each = _WARMUP_ROUNDS + settings.rounds
    with Bar("timing decoding") as bar:
        watch = bar.count("timing decoding: round", "")
        for number, (batch, context) in enumerate(points):
            try:
                check_memory(models.values(), batch, context, cache_dtype, device, of_others)
            except EvaluationError as error:
                say(str(error))
                continue
            steps: dict[str, Step] = {
                name: DecodeStep(model, batch, context, cache_dtype)
                for name, model in models.items()
            }
            for name, (model, _) in others.items():
                try:
                    steps[name] = model.decode_step(batch, context)
                except ValueError as error:
                    say(f"{name} is not timed at batch {batch} and context {context}: {error}")
            if not steps:
                continue
            position = (number * rounds_each, len(points) * rounds_each)
            rounds = _take_turns(steps, settings, device, position, watch)
            for name, step in steps.items():
                found[name].append(_point(step, rounds[name], bandwidth, device))
            del steps, step  # their caches, before the next ones are made
    return found


def check_memory(
    models: Any,
    batch: int,
    context: int,
    cache_dtype: torch.dtype | None,
    device: torch.device,
    others: Sequence[Callable[[int], float]] = (),
) -> None:
    """Refuse a point whose caches, those of `others` among them, would not fit together.

    Raises:
        EvaluationError: Saying how much is missing.
    """
    length = context + 1
    each = sum(cache_bytes(length) for cache_bytes in others) + sum(
        kv_cache_bytes(model.config, length, cache_dtype or model.embed_tokens.weight.dtype)
        for model in models
    )
    needed, free = batch * each, available_bytes(device)
    if free is not None and needed > MEMORY_SHARE * free:
        raise EvaluationError(
            f"decoding at batch {batch} and context {context} is left out: the caches of all "
            f"models need {in_units(needed)} of the {in_units(free)} that are free"
        )


class DecodeStep:
    """One decoding step that can be repeated: a model, a full cache, and room for one token.

    Args:
        model: In evaluation mode.
        batch: Sequences.
        context: Tokens of each that the cache holds before the step, random ones.
        cache_dtype: What it stores; the weights' own if None.
    """

    def __init__(
        self, model: GPT, batch: int, context: int, cache_dtype: torch.dtype | None = None
    ) -> None:
        self.model = model
        self.batch = batch
        self.context = context
        self.cache = model.new_cache(batch, context + 1, cache_dtype)
        fill_with_noise(self.cache, context)
        config, dtype = model.config, self.cache.dtype
        self.cache_bytes = batch * kv_cache_bytes(config, context, dtype)
        self.cache_bytes_read = batch * kv_cache_bytes_read(config, context, dtype)
        self.weight_bytes = weight_bytes(model)
        self.beyond_trained = context >= config.max_position_embeddings
        device = model.embed_tokens.weight.device
        # Not one that ends a document: what comes before it could not be returned to.
        token = 1 if model.config.end_of_document_id == 0 else 0
        self._tokens = torch.full((batch, 1), token, dtype=torch.long, device=device)
        self._positions: Tensor | None = None
        if model.config.position_embedding == "learned":
            # It has no vector for later ones; any takes as long.
            last = min(context, model.config.max_position_embeddings - 1)
            self._positions = torch.tensor([last], device=device)

    def __call__(self) -> Tensor:
        """Return the logits [b, n] behind one more token, and forget it."""
        logits = self.model.next_logits(self._tokens, self._positions, self.cache)
        # Not restored: what a step leaves in a ring or a state is as good as the noise before it,
        # and a copy would be no part of decoding.
        for layer in self.cache.stored:
            layer.seen = self.context
        return logits


def fill_with_noise(cache: KVCache, length: int) -> None:
    """Let a cache hold `length` random tokens, as if they had been decoded."""
    for layer in cache.stored:
        for tensor in [*layer.tensors.values(), *layer.scales.values()]:
            stored = tensor[:, :, :length]  # a ring shorter than that is filled as a whole
            if tensor.dtype == torch.int8:
                stored.random_(-127, 128)
            else:
                stored.normal_()
        for state in layer.fixed.values():
            state.normal_()
        layer.seen = length
        layer.number_held()  # looking up one position's cosines for all would be too fast


def _take_turns(
    steps: Mapping[str, Step],
    settings: DecodeSettings,
    device: torch.device,
    position: tuple[int, int],
    watch: Callable[[int, int], None],
) -> dict[str, list[float]]:
    """Return milliseconds per step of each model, one number per round.

    `watch` gets the rounds before each one and all there are; `position` has both at the first.
    """
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    rounds_before, all_rounds = position
    order = list(steps)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(_WARMUP_ROUNDS + settings.rounds):
            watch(rounds_before + number, all_rounds)
            first = number % len(order)  # nobody always follows the same one
            for name in order[first:] + order[:first]:
                turn = [_milliseconds(steps[name], device) for _ in range(settings.steps)]
                if number >= _WARMUP_ROUNDS:
                    rounds[name].append(statistics.median(turn))
    finally:
        if was_enabled:
            gc.enable()
    return rounds


def _milliseconds(step: Step, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _point(step: Step, rounds: list[float], bandwidth: float, device: torch.device) -> DecodePoint:
    milliseconds = statistics.median(rounds)
    bytes_read = step.weight_bytes + step.cache_bytes_read
    return DecodePoint(
        batch=step.batch,
        context=step.context,
        ms_per_token=milliseconds,
        ms_by_round=rounds,
        tokens_per_second=1e3 * step.batch / milliseconds,
        cache_bytes=step.cache_bytes,
        cache_bytes_read=step.cache_bytes_read,
        roofline_ms=1e3 * bytes_read / bandwidth,
        memory_bandwidth=bandwidth,
        peak_extra_bytes=peak_extra_bytes(step, device),
        beyond_trained=step.beyond_trained,
    )


def weight_bytes(model: GPT) -> int:
    """Return the bytes of weights that a step reads: all but the embeddings it looks one up of."""
    looked_up = [model.embed_positions] if model.config.position_embedding == "learned" else []
    if not model.config.tie_word_embeddings:
        looked_up.append(model.embed_tokens)
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return total - sum(e.weight.numel() * e.weight.element_size() for e in looked_up)
