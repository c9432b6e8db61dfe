"""What the caches of benchmarks/decode.py take, and which of them fit into memory together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from benchmarks.decode_parts import cache_bytes
from benchmarks.decode_systems import DYNAMIC, LITGPT, PREALLOCATED, STATIC, SYSTEMS
from files.sizes import in_units
from modeling.config import GPTConfig


@dataclass(frozen=True)
class Need:
    """Bytes that a system needs at a point, besides its weights."""

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
        config: Of the kvlab model with its dimensions.
        batch: Sequences.
        length: Tokens that its cache must hold.
        dtype: Of the cache.
    """
    return _NEEDS[SYSTEMS[system].cache](config, batch, length, dtype)


def group_systems(
    names: Iterable[str], needs: dict[str, Need], available: int | None
) -> tuple[list[list[str]], dict[str, str]]:
    """Split systems into groups whose caches fit into memory together.

    Each group holds kvlab-mha, the common reference, and with every peer its kvlab counterpart, so
    that what is compared takes turns with what it is compared with. A group whose peers do not all
    fit is split further.

    Args:
        names: The systems, `kvlab-mha` among them or not.
        needs: Their memory.
        available: Bytes that there are; None puts all into one group.

    Returns:
        The groups, each in the order of `names`, and what is left out with the reason.
    """
    names = list(names)
    if available is None or _bytes(names, needs) <= available:
        return [names], {}
    left_out: dict[str, str] = {}
    base = [name for name in names if name == "kvlab-mha" and _bytes([name], needs) <= available]
    groups: list[set[str]] = []

    def placed(unit: set[str]) -> bool:
        for group in groups:
            if _bytes(group | unit, needs) <= available:
                group |= unit
                return True
        if _bytes(unit.union(base), needs) <= available:
            groups.append(unit.union(base))
            return True
        return False

    for attention in dict.fromkeys(SYSTEMS[name].attention for name in names):
        family = [name for name in names if SYSTEMS[name].attention == attention]
        if placed(set(family)):
            continue
        ours = {name for name in family if not SYSTEMS[name].is_peer}
        # Peers first: each brings its kvlab counterpart along.
        for name in sorted(family, key=lambda name: name in ours):
            unit = ours | {name}
            if not any(unit <= group for group in groups) and not placed(unit):
                wanted = _bytes(unit.union(base), needs)
                left_out[name] = (
                    f"it and what it is compared with need {in_units(wanted)} for their caches, "
                    f"and {in_units(available)} are free"
                )
    return [[name for name in names if name in group] for group in groups], left_out


def _bytes(names: Iterable[str], needs: dict[str, Need]) -> int:
    """What they need together: each its cache, and one at a time what a step takes."""
    some = [needs[name] for name in names]
    return sum(one.cache for one in some) + max((one.extra for one in some), default=0)
