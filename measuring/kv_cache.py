"""The KV cache, measured: bytes of the live tensors after a real decode, at several contexts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from files.sizes import in_units
from measuring.errors import EvaluationError
from measuring.machine import MEMORY_SHARE, available_bytes, peak_extra_bytes
from modeling.accounting import (
    CacheCurve,
    cache_curve,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    kv_cache_bytes_read,
    mha_cache_bytes_per_token,
)
from modeling.config import GPTConfig, SamplingSettings
from modeling.generate import PREFILL_CHUNK, generate
from modeling.gpt import GPT

_NEW_TOKENS = 8
_ALLOWED = 0.01
"""Share by which a cache may differ from its closed form."""
CACHE_KEYS = (
    *("kv_cache_bytes_per_token", "kv_cache_bytes_measured", "kv_cache_tokens_measured"),
    *("kv_cache_context", "kv_cache_bytes_at_context", "kv_cache_bytes_read_per_step"),
    *("kv_cache_curve", "kv_cache_points", "cache_ratio_to_mha"),
)
"""Keys of `CacheMeasurement.as_row`."""


@dataclass(frozen=True)
class CacheMeasurement:
    """Bytes of a sequence's cache, by formula and as measured.

    Args:
        context: Tokens of the sequence at which the cache is stated.
        points: Live storage bytes of a sequence by its tokens, `context` among them.
        batch_size: Sequences of each decode.
        config: Configuration of the model; None where kvlab has no formula.
        dtype: That of the cached elements.
        weights_dtype: That of the weights, which multi-head attention would cache.
    """

    context: int
    points: Mapping[int, float]
    batch_size: int
    config: GPTConfig | None = None
    dtype: torch.dtype = torch.float32
    weights_dtype: torch.dtype = torch.float32

    @property
    def measured_bytes_at_context(self) -> float:
        """Live storage bytes of a sequence of `context` tokens."""
        return self.points[self.context]

    @property
    def curve(self) -> CacheCurve | None:
        """Fixed part, slope and plateau, fitted to what was measured; None if nothing fits.

        What lies beyond the longest context that was measured is the closed form's.
        """
        fitted = fitted_curve(self.points)
        formula = self.config and cache_curve(self.config, self.dtype)
        if fitted and formula and formula.plateau >= max(self.points):
            return CacheCurve(fitted.fixed, fitted.slope, formula.plateau, formula.slope_beyond)
        return fitted

    def as_row(self) -> dict[str, Any]:
        """Return the keys of a row about the cache; what has no formula is None or measured."""
        measured, curve = self.measured_bytes_at_context, self.curve
        values: dict[str, Any] = {
            "kv_cache_bytes_per_token": None,
            "kv_cache_bytes_measured": measured / self.context,
            "kv_cache_tokens_measured": self.batch_size * self.context,
            "kv_cache_context": self.context,
            "kv_cache_bytes_at_context": measured,
            "kv_cache_bytes_read_per_step": None,
            "kv_cache_curve": curve and asdict(curve),
            "kv_cache_points": [list(point) for point in sorted(self.points.items())],
            "cache_ratio_to_mha": None,
        }
        if self.config is not None:
            at_context = kv_cache_bytes(self.config, self.context, self.dtype)
            mha = mha_cache_bytes_per_token(self.config, self.weights_dtype) * self.context
            values |= {
                "kv_cache_bytes_per_token": kv_cache_bytes_per_token(self.config, self.dtype),
                "kv_cache_bytes_at_context": at_context,
                "kv_cache_bytes_read_per_step": kv_cache_bytes_read(
                    self.config, self.context, self.dtype
                ),
                "cache_ratio_to_mha": at_context / mha,
            }
        return values


def cache_context_of(row: Mapping[str, Any]) -> int:
    """Return the tokens at which a row's cache is stated; 1 where it says none.

    A row from before the key was measured at the context of its protocol card.
    """
    card = row.get("protocol") or {}
    return int(row.get("kv_cache_context") or card.get("context") or 1)


def cache_bytes_of(row: Mapping[str, Any]) -> float:
    """Return the bytes at the stated context that a run or variant is sorted and compared by.

    The closed form, or what was measured where kvlab has no formula; infinite where that could not
    be measured, which no table or plot shows. In rows from before the key each token took as much.
    """
    if (known := row.get("kv_cache_bytes_at_context")) is not None:
        return float(known)
    formula, measured = row["kv_cache_bytes_per_token"], row["kv_cache_bytes_measured"]
    per_token = measured if formula is None else formula
    return math.inf if per_token is None else float(per_token) * cache_context_of(row)


def known_bytes_of(row: Mapping[str, Any]) -> float | None:
    """Return `cache_bytes_of` a run or variant; None where it is not known."""
    return cache_bytes_of(row) if has_known_cache(row) else None


def measured_bytes_of(row: Mapping[str, Any]) -> float | None:
    """Return the bytes that were measured at the stated context; None where none were."""
    measured = row["kv_cache_bytes_measured"]
    return None if measured is None else float(measured) * cache_context_of(row)


def bytes_read_of(row: Mapping[str, Any]) -> float | None:
    """Return the bytes that a step reads, where they are known and not those that are stored."""
    read: float | None = row.get("kv_cache_bytes_read_per_step")
    return None if read == row.get("kv_cache_bytes_at_context") else read


def estimated_cache_bytes(row: Mapping[str, Any], num_tokens: int) -> float:
    """Return what a sequence of other tokens takes, by the curve; 0 where nothing was measured."""
    if curve := row.get("kv_cache_curve"):
        return CacheCurve(**curve).bytes(num_tokens)
    return cache_bytes_of(row) / cache_context_of(row) * num_tokens if has_known_cache(row) else 0.0


def has_known_cache(row: Mapping[str, Any]) -> bool:
    """Return whether `cache_bytes_of` a run or variant is a number."""
    return math.isfinite(cache_bytes_of(row))


def fitted_curve(points: Mapping[int, float]) -> CacheCurve | None:
    """Fit a line, or two that meet where windows are full, to a cache's bytes by its tokens.

    Each line goes through the first and the last of its points, and all of them have to lie within
    1 % of it.

    Args:
        points: Bytes of a sequence by its tokens, of two contexts or more.

    Returns:
        The curve that fits best; None if none does.
    """
    tokens = sorted(points)
    if len(tokens) < 2:
        return None
    slope, fixed = _line(points, tokens)
    whole = CacheCurve(fixed=fixed, slope=slope, plateau=0, slope_beyond=slope)
    if _error(whole, points) <= 1e-9:
        return whole
    bent = []
    for split in range(2, len(tokens) - 1):
        (slope, fixed), (beyond, level) = (
            _line(points, some) for some in (tokens[:split], tokens[split:])
        )
        if slope != beyond:
            plateau = round((level - fixed) / (slope - beyond))
            if tokens[split - 1] <= plateau <= tokens[split]:
                bent.append(CacheCurve(fixed, slope, plateau, beyond))
    best = min([whole, *bent], key=lambda curve: _error(curve, points))
    return best if _error(best, points) <= _ALLOWED else None


def _line(points: Mapping[int, float], tokens: list[int]) -> tuple[int, int]:
    """Return slope and start, whole bytes, of the line through the first and the last point."""
    first, last = tokens[0], tokens[-1]
    slope = (points[last] - points[first]) / (last - first)
    return round(slope), round(points[first] - slope * first)


def _error(curve: CacheCurve, points: Mapping[int, float]) -> float:
    """Return the largest share by which a curve misses a point."""
    return max(abs(curve.bytes(t) - known) / max(known, 1) for t, known in points.items())


def contexts_to_measure(context: int, window: int | None, longest: int | None) -> list[int]:
    """Return the contexts at which a cache is measured, so that its curve can be fitted.

    Around the window, where the cache bends, else spread; the stated context is always there.

    Args:
        context: At which the cache is stated.
        window: Tokens that some layers hold at most; None if all hold every token.
        longest: Tokens that the model can be shown; None for any number.
    """
    spread = [max(2, context // 4), context // 2, 3 * context // 4]
    around = [] if window is None else [window - 1, window, window + 1, 4 * window]
    # A window far beyond the context would take long to fill, and shows in no number.
    chosen = [t for t in around if t <= 4 * context] or spread
    found = {t for t in (1, *chosen) if t >= 1 and (longest is None or t <= longest)}
    return sorted(found | {context})


def require_closed_form(name: str, cache: CacheMeasurement) -> None:
    """Refuse a model whose cache is not what its closed form says: tables would show the latter.

    Args:
        name: Name of the run.
        cache: That of its model, which has a formula.

    Raises:
        EvaluationError: If they differ by more than 1 % at a context; naming both.
    """
    assert cache.config is not None
    for tokens, measured in cache.points.items():
        formula = kv_cache_bytes(cache.config, tokens, cache.dtype)
        if abs(measured - formula) > _ALLOWED * formula:
            raise EvaluationError(
                f"{name}: the live KV cache of {tokens:,} tokens takes {measured:,.0f} bytes, but "
                f"the closed form of attention '{cache.config.attention['name']}' says "
                f"{formula:,.0f}; correct the state that its configuration declares, or new_cache "
                "of its module"
            )


@torch.no_grad()
def measure_kv_cache(
    model: GPT, batch_size: int, context: int, dtype: torch.dtype | None = None
) -> CacheMeasurement:
    """Measure a cache when it is full, at the stated context and at those that show its curve.

    Contexts that memory has no room for are left out, but for the stated one.

    Args:
        model: In evaluation mode.
        batch_size: Sequences.
        context: Tokens per sequence at which the cache is stated.
        dtype: What the cache stores; the weights' own if None.

    Raises:
        EvaluationError: If memory has no room for the cache of `context` tokens.
    """
    config, weights_dtype = model.config, model.embed_tokens.weight.dtype
    dtype = dtype or weights_dtype
    free = available_bytes(model.embed_tokens.weight.device)
    learned = config.position_embedding == "learned"
    window = cache_curve(config, dtype).plateau or None
    points: dict[int, float] = {}
    for tokens in contexts_to_measure(
        context, window, config.max_position_embeddings if learned else None
    ):
        needed = batch_size * kv_cache_bytes(config, tokens, dtype)
        if free is None or needed <= MEMORY_SHARE * free:
            points[tokens] = _live_bytes(model, batch_size, tokens, dtype) / batch_size
        elif tokens == context:
            raise EvaluationError(
                f"a cache of {context:,} tokens takes {in_units(needed)} of the {in_units(free)} "
                "that are free; set eval.cache_context or eval.cache_batch_size to less"
            )
    return CacheMeasurement(context, points, batch_size, config, dtype, weights_dtype)


def _live_bytes(model: GPT, batch_size: int, num_tokens: int, dtype: torch.dtype) -> int:
    """Prefill and decode until a cache is full; return its bytes."""
    device = model.embed_tokens.weight.device
    cache = model.new_cache(batch_size, num_tokens, dtype)
    prompt = num_tokens - min(4, num_tokens - 1)
    chunk = min(PREFILL_CHUNK, num_tokens)
    tokens = torch.zeros(batch_size, chunk, dtype=torch.long, device=device)
    for start in range(0, prompt, chunk):
        model.hidden_states(tokens[:, : prompt - start], cache=cache)
    for _ in range(prompt, num_tokens):
        model(tokens[:, :1], cache=cache)
    assert cache.seen == num_tokens
    return cache.num_bytes()


def measure_generation_memory(
    model: GPT, batch_size: int, context_length: int, dtype: torch.dtype | None = None
) -> int:
    """Return the most bytes that generating a text takes beyond the weights and the KV cache.

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
