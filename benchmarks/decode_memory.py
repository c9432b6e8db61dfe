"""What the caches of benchmarks/decode.py take, and which of them fit into memory together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.decode_parts import cache_bytes
from benchmarks.decode_systems import DYNAMIC, LITGPT, PREALLOCATED, STATIC, SYSTEMS
from files.sizes import in_units
from modeling.config import GPTConfig


@dataclass(frozen=True)
class Need:
    """Bytes that a system needs at a point in addition to its weights."""

    cache: int
    """For as long as the point is measured."""
    extra: int = 0
    """While it does a step or puts its cache back."""


def _layer(config: GPTConfig, batch: int, length: int, dtype: torch.dtype, width: int) -> int:
    """One layer's keys or values of all query heads, `width` elements each."""
    return config.num_attention_heads * width * batch * length * dtype.itemsize


def _preallocated(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> Need:
    """The preallocated cache."""
    return Need(cache_bytes(config, batch, length, dtype))


def _dynamic(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> Need:
    """The cache and copies of two of its layers; MLA expands a layer to all heads, and copies it.

    Its products are the expansion, the keys put together, the values made contiguous, and what the
    unfused attention of two widths makes of the two.
    """
    cache = cache_bytes(config, batch, length, dtype)
    extra = 2 * cache // config.num_hidden_layers
    if "kv_lora_rank" in config.attention:
        extra += 4 * _layer(config, batch, length, dtype, _key_and_value_width(config))
    return Need(cache, extra)


def _static(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> Need:
    """The cache, and a layer of it for what its attention might copy."""
    cache = cache_bytes(config, batch, length, dtype)
    return Need(cache, cache // config.num_hidden_layers)


def _litgpt(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> Need:
    """The cache (MLA's is of all heads), a mask of every pair, a layer with its heads repeated."""
    repeated = _layer(config, batch, length, dtype, _key_and_value_width(config))
    if "kv_lora_rank" in config.attention:
        cache = config.num_hidden_layers * repeated
    else:
        cache = cache_bytes(config, batch, length, dtype)
    return Need(cache + length * length, 2 * repeated)


def _key_and_value_width(config: GPTConfig) -> int:
    attention = config.attention
    if "kv_lora_rank" in attention:
        key = attention["qk_nope_head_dim"] + attention["qk_rope_head_dim"]
    else:
        key = attention["head_dim"]
    return key + attention["v_head_dim"]


_NEEDS: dict[str, Callable[[GPTConfig, int, int, torch.dtype], Need]] = {
    PREALLOCATED: _preallocated,
    DYNAMIC: _dynamic,
    STATIC: _static,
    LITGPT: _litgpt,
}


def need(system: str, config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> Need:
    """Return what a system needs at a point.

    Args:
        system: A key of `SYSTEMS`.
        config: That of the kvlab model with its dimensions.
        batch: Sequences.
        length: Tokens that its cache must hold.
        dtype: That of the cache.
    """
    return _NEEDS[SYSTEMS[system].cache](config, batch, length, dtype)


def that_fit(needs: dict[str, Need], available: int | None) -> tuple[list[str], dict[str, str]]:
    """Choose systems whose caches fit into memory together, the first ones first.

    Args:
        needs: What each takes.
        available: Bytes that there are; None takes all.

    Returns:
        The systems, and what is left out with the reason.
    """
    chosen: list[str] = []
    left_out: dict[str, str] = {}
    for name in needs:
        some = [needs[one] for one in (*chosen, name)]
        # Each has its cache, and one at a time what a step takes.
        wanted = sum(one.cache for one in some) + max(one.extra for one in some)
        if available is None or wanted <= available:
            chosen.append(name)
        else:
            left_out[name] = (
                f"with the systems before it caches need {in_units(wanted)}, and "
                f"{in_units(available)} are free; measure fewer --systems at a time"
            )
    return chosen, left_out
