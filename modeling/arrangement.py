"""The attention of each layer: one configuration a layer, as the arrangement places it."""

import dataclasses

from modeling.attention import AttentionConfig, Placement, attention_config
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
    others = {name: attention_config(fields) for name, fields in layers.attentions.items()}
    pattern = layers.pattern or ["own"]
    base = [others.get(pattern[idx % len(pattern)], own) for idx in range(config.num_hidden_layers)]
    kinds = [_kind(layers, idx) for idx in range(config.num_hidden_layers)]
    placed = [attention.placed(kind) for attention, kind in zip(base, kinds, strict=True)]
    sources = _sources(layers, placed)
    _check_sources(sources, placed)
    found = [
        attention.placed(dataclasses.replace(kind, source=None if source == idx else source))
        for idx, (attention, kind, source) in enumerate(zip(base, kinds, sources, strict=True))
    ]
    _check_positions(config, found)
    return found


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
            raise ModelConfigError(
                f"layers.share=last: no layer before the last {last} is of the kind of layer "
                f"{idx}; set layers.share_last to less, or layers.full_every to less"
            )
        found.append(alike[-1])
    return found


def _check_sources(sources: list[int], placed: list[AttentionConfig]) -> None:
    """Refuse a consumer whose producer keeps something else than what it reads."""
    problems = []
    for idx, source in enumerate(sources):
        mine, its = placed[idx], placed[source]
        if type(mine) is not type(its) or mine.state() != its.state():
            problems.append(
                f"layer {idx} cannot read layer {source}: it needs {_described(mine)}, and that "
                f"one keeps {_described(its)}; let layers.source name a layer of the same kind"
            )
    if problems:
        raise ModelConfigError(problems)


def _described(attention: AttentionConfig) -> str:
    state = attention.state()
    kept = " and ".join(
        f"{heads} x {width} of {name}" for name, (heads, width) in state.per_token.items()
    )
    seen = "all tokens" if state.window is None else f"the newest {state.window} tokens"
    return f"{kept or 'a state of fixed size'} for {seen}"


def _check_positions(config: GPTConfig, attentions: list[AttentionConfig]) -> None:
    """Refuse a model that cannot tell the order of its tokens."""
    if config.position_embedding != "none" or config.allow_nope:
        return
    if not any(attention.knows_order for attention in attentions):
        rope = "model.attention.qk_rope_head_dim is 0"
        if attention_config(config.attention).knows_order:
            rope = "layers.full_rope=false leaves RoPE out of every layer"
        raise ModelConfigError(
            f"the model has no position information: model.position_embedding is none and {rope}; "
            "set model.position_embedding=learned, a qk_rope_head_dim above 0 on a layer that "
            "keeps it, or model.allow_nope=true if that is what you want"
        )
