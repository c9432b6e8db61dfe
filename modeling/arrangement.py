"""The attention of each layer: one configuration a layer, as the arrangement places it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from modeling.attention import (
    AttentionConfig,
    Placement,
    SoftmaxAttentionConfig,
    attention_config,
)
from modeling.config import GPTConfig, LayersConfig
from modeling.errors import ModelConfigError


def layer_configs(config: GPTConfig) -> list[AttentionConfig]:
    """Return the attention of each layer, first layer first.

    Raises:
        ModelConfigError: Naming every value that is impossible or does not fit the others.
    """
    problems = config.problems()
    if problems:
        raise ModelConfigError(problems)
    layers = config.layers
    own = attention_config(config.attention)
    others = {name: _other(name, fields) for name, fields in layers.attentions.items()}
    pattern = layers.pattern or ["own"]
    base = [others.get(pattern[idx % len(pattern)], own) for idx in range(config.num_hidden_layers)]
    kinds = [_kind(layers, idx) for idx in range(config.num_hidden_layers)]
    placed = [attention.placed(kind) for attention, kind in zip(base, kinds, strict=True)]
    sources = _sources(layers, placed)
    _check_sources(layers, sources, placed)
    found = [
        attention.placed(dataclasses.replace(kind, source=None if source == idx else source))
        for idx, (attention, kind, source) in enumerate(zip(base, kinds, sources, strict=True))
    ]
    _check_positions(config, found)
    return found


def remarks(config: GPTConfig) -> list[str]:
    """Return what an arrangement does not do at this size, though it can be built."""
    layers, context, count = config.layers, config.max_position_embeddings, config.num_hidden_layers
    found = []
    if layers.window is not None and layers.window >= context:
        found.append(
            f"layers.window ({layers.window}) covers the whole context of {context} tokens: layers "
            "with a window see and keep as much as full ones"
        )
    if layers.full_every is not None and layers.full_every > count:
        found.append(
            f"layers.full_every ({layers.full_every}) makes none of the {count} layers full: all "
            "have a window"
        )
    if len(layers.pattern or []) > count:
        found.append(
            f"layers.pattern names {len(layers.pattern or [])} attentions for {count} layers: the "
            "last ones are in none"
        )
    return found


def _other(name: str, fields: Mapping[str, Any]) -> AttentionConfig:
    """Build an attention that the pattern names, whose problems name its own keys."""
    try:
        return attention_config(fields)
    except ModelConfigError as error:
        problem = str(error).replace("model.attention.", f"layers.attentions.{name}.")
        where = "" if "layers.attentions" in problem else f"layers.attentions.{name}: "
        raise ModelConfigError(f"{where}{problem}") from None


def _kind(layers: LayersConfig, idx: int) -> Placement:
    """Return where layer `idx` stands, but for the layer it reads."""
    if layers.window is None:
        return Placement()
    if layers.full_every is not None and (idx + 1) % layers.full_every == 0:
        return Placement(rope=layers.full_rope, rope_theta=layers.full_rope_theta)
    return Placement(window=layers.window, sinks=layers.sinks)


def _sources(layers: LayersConfig, placed: list[AttentionConfig]) -> list[int]:
    """Return for each layer the layer whose keys and values it reads, itself for its own."""
    count = len(placed)
    if layers.source is not None:
        return layers.source
    if layers.share == "pairs":
        return [2 * (idx // 2) for idx in range(count)]
    if layers.share == "upper":
        return [min(idx, count // 2) for idx in range(count)]
    if layers.share != "last":
        return list(range(count))
    last = count // 2 if layers.share_last is None else layers.share_last
    producers = range(count - last)
    found = list(producers)
    for idx in range(count - last, count):
        alike = [producer for producer in producers if placed[producer] == placed[idx]]
        if not alike:
            less = "layers.share_last" if placed[idx] in placed[:idx] else "layers.full_every"
            less = less if layers.pattern is None else "layers.share_last"
            raise ModelConfigError(
                f"layers.share=last: none of the first {count - last} layers, which keep keys, is "
                f"of the same kind as layer {idx} (from 0); set {less} to less"
            )
        found.append(alike[-1])
    return found


def _check_sources(layers: LayersConfig, sources: list[int], placed: list[AttentionConfig]) -> None:
    """Refuse a consumer whose producer keeps something else than what it reads."""
    for idx, source in enumerate(sources):
        mine, its = placed[idx], placed[source]
        same_state = type(mine) is type(its) and mine.state() == its.state()
        if same_state and _rotation(mine) == _rotation(its):
            continue
        asked = "layers.source" if layers.source else f"layers.share={layers.share}"
        alike = [one for one in range(idx + 1) if placed[one] == mine and sources[one] == one]
        out = f"layer {alike[-1]}" if alike else f"itself ({idx})"
        raise ModelConfigError(
            f"{asked}: layer {idx} (from 0) cannot read layer {source}: it needs "
            f"{_described(mine)}{_rotation(mine) if same_state else ''}, and that one keeps "
            f"{_described(its)}{_rotation(its) if same_state else ''}; with layers.source=[...], "
            f"one number a layer, it can read {out}"
        )


def _rotation(attention: AttentionConfig) -> str:
    """Describe the RoPE in the keys that a layer keeps, which its readers' queries must have too.

    Empty where keys are rotated only when they are read.
    """
    if not isinstance(attention, SoftmaxAttentionConfig) or attention.state().needs_positions:
        return ""
    if attention.qk_rope_head_dim == 0:
        return ", without RoPE"
    return f", RoPE on {attention.qk_rope_head_dim} dimensions with theta {attention.rope_theta:g}"


def _described(attention: AttentionConfig) -> str:
    state = attention.state()
    kept = " and ".join(
        f"{heads} x {width} of {name}" for name, (heads, width) in state.per_token.items()
    )
    seen = "all tokens" if state.window is None else f"the newest {state.window} tokens"
    return f"{kept or 'a state of fixed size'} for {seen}"


def _check_positions(config: GPTConfig, attentions: list[AttentionConfig]) -> None:
    """Refuse a model that has no information on the order of its tokens."""
    if config.position_embedding != "none" or config.allow_nope:
        return
    if not any(attention.knows_order for attention in attentions):
        rope = "model.attention.qk_rope_head_dim is 0"
        way_out = "a qk_rope_head_dim above 0"
        if config.layers.pattern is None and attention_config(config.attention).knows_order:
            rope = "layers.full_rope=false leaves RoPE to layers with a window, and there are none"
            way_out = "layers.full_rope=true"
        elif config.layers.pattern is not None:
            rope = "no attention of layers.pattern has RoPE"
            way_out = "an attention with RoPE in it"
        raise ModelConfigError(
            f"the model has no position information: model.position_embedding is none and {rope}; "
            f"set model.position_embedding=learned, {way_out}, or model.allow_nope=true if that is "
            "what you want"
        )
