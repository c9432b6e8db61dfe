"""The KV cache, measured: bytes of the live tensors after a real decode."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from measuring.errors import EvaluationError
from measuring.machine import peak_extra_bytes
from modeling.accounting import kv_cache_bytes, kv_cache_bytes_per_token
from modeling.config import SamplingSettings
from modeling.generate import generate
from modeling.gpt import GPT

_NEW_TOKENS = 8
_ALLOWED = 0.01
"""Share by which a cache may differ from its closed form."""


@dataclass(frozen=True)
class CacheMeasurement:
    """Bytes per token, by formula and as measured.

    Args:
        bytes_per_token: What a token adds once every window is full; closed form.
        bytes_at_context: Of a sequence of `context_length` tokens; closed form.
        measured_bytes_at_context: Live storage bytes / sequences.
        batch_size: Sequences of the decode.
        context_length: Tokens per sequence that the cache held.
        dtype: Of the cached elements.
    """

    bytes_per_token: int
    bytes_at_context: int
    measured_bytes_at_context: float
    batch_size: int
    context_length: int
    dtype: str

    @property
    def measured_bytes_per_token(self) -> float:
        """Live storage bytes / tokens seen, in the mean over the context."""
        return self.measured_bytes_at_context / self.context_length


def cache_bytes_of(row: Mapping[str, Any]) -> float:
    """Return the bytes per token that a run or variant is sorted, drawn and compared by.

    The closed form, or what was measured where kvlab has no formula; infinite where that could not
    be measured, which no table or plot shows.
    """
    formula, measured = row["kv_cache_bytes_per_token"], row["kv_cache_bytes_measured"]
    known = measured if formula is None else formula
    return math.inf if known is None else float(known)


def has_known_cache(row: Mapping[str, Any]) -> bool:
    """Tell whether `cache_bytes_of` a run or variant is a number."""
    return math.isfinite(cache_bytes_of(row))


def require_closed_form(name: str, attention: str, formula: float, measured: float) -> None:
    """Refuse a model whose cache is not what its closed form says: tables would show the latter.

    Args:
        name: Of the run.
        attention: Its attention's registered name.
        formula: Bytes of a sequence by the closed form.
        measured: Bytes of a sequence's live cache, of as many tokens.

    Raises:
        EvaluationError: If they differ by more than 1 %; naming both.
    """
    if abs(measured - formula) > _ALLOWED * formula:
        raise EvaluationError(
            f"{name}: the live KV cache takes {measured:,.0f} bytes a sequence, but the closed "
            f"form of attention '{attention}' says {formula:,.0f}; correct the state "
            "that its configuration declares, or new_cache of its module"
        )


@torch.no_grad()
def measure_kv_cache(
    model: GPT, batch_size: int, context_length: int, dtype: torch.dtype | None = None
) -> CacheMeasurement:
    """Prefill and decode until the cache is full, then measure it.

    Args:
        model: In evaluation mode.
        batch_size: Sequences.
        context_length: Tokens per sequence, at least 2 and within the model's context.
        dtype: What the cache stores; the weights' own if None.
    """
    device = model.embed_tokens.weight.device
    dtype = dtype or model.embed_tokens.weight.dtype
    cache = model.new_cache(batch_size, context_length, dtype)
    num_decoded = min(4, context_length - 1)
    tokens = torch.zeros(batch_size, context_length, dtype=torch.long, device=device)
    model.hidden_states(tokens[:, :-num_decoded], cache=cache)
    for step in range(context_length - num_decoded, context_length):
        model(tokens[:, step : step + 1], cache=cache)
    return CacheMeasurement(
        bytes_per_token=kv_cache_bytes_per_token(model.config, dtype),
        bytes_at_context=kv_cache_bytes(model.config, context_length, dtype),
        measured_bytes_at_context=cache.num_bytes() / batch_size,
        batch_size=batch_size,
        context_length=cache.seen,
        dtype=str(dtype).removeprefix("torch."),
    )


def measure_generation_memory(
    model: GPT, batch_size: int, context_length: int, dtype: torch.dtype | None = None
) -> int:
    """Return the most bytes that generating a text takes besides the weights and the KV cache.

    Args:
        model: In evaluation mode.
        batch_size: Sequences.
        context_length: Tokens of prompt and text, at least 2 and within the model's context.
        dtype: What the cache stores; the weights' own if None.
    """
    num_new = min(_NEW_TOKENS, context_length - 1)
    prompt = torch.zeros(batch_size, context_length - num_new, dtype=torch.long)
    prompt = prompt.to(model.embed_tokens.weight.device)
    greedy = SamplingSettings(temperature=0.0)

    def run() -> None:
        for _ in generate(model, prompt, num_new, greedy, cache_dtype=dtype):
            pass

    cache = model.new_cache(batch_size, context_length, dtype).num_bytes()
    return peak_extra_bytes(run, prompt.device) - cache
