"""How the layers of a model differ: what the Llama-like classes say of it, and what kvlab says.

In between stands one `Layer` for each layer of the model. Kvlab's `LayersConfig` puts full layers
at every p-th place; transformers' classes list a kind, and a base of RoPE, for each layer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interop.errors import InteropError
from interop.families.config_json import rope_theta_of
from modeling.attention import (
    AttentionConfig,
    LatentAttentionConfig,
    Placement,
    SoftmaxAttentionConfig,
)
from modeling.config import GPTConfig, LayersConfig

FULL, SLIDING = "full_attention", "sliding_attention"
_IDLE_SINK = -1e3
"""Granite's class has sinks in every layer; one as low as this takes no weight from the tokens."""
NO_SINK = -1e4
"""What a layer without sinks is written with: sigmoid(logsumexp - sink) is then exactly 1."""


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer.

    Args:
        window: Newest tokens that a query sees, itself included; None for all.
        theta: Base of RoPE's frequencies; None without RoPE.
        sinks: Whether a learned logit per head joins the softmax.
    """

    window: int | None
    theta: float | None
    sinks: bool

    @property
    def kind(self) -> str:
        """The entry of `layer_types`."""
        return FULL if self.window is None else SLIDING


def layers_of(attentions: Sequence[AttentionConfig]) -> list[Layer]:
    """Describe the layers of a model of kvlab."""
    return [
        Layer(
            attention.sliding_window,
            attention.rope_theta if attention.qk_rope_head_dim else None,
            attention.attention_sinks,
        )
        for attention in attentions
        if isinstance(attention, SoftmaxAttentionConfig)
    ]


def window_of(layers: Sequence[Layer]) -> int | None:
    """Return the window of the layers that have one, which is the same in all; None if none has."""
    return next((layer.window for layer in layers if layer.window is not None), None)


def arrangement_problems(config: GPTConfig, attentions: Sequence[AttentionConfig]) -> list[str]:
    """Return what layers have, or how they are arranged, that no stock class of any family has."""
    found = []
    for tie in sorted({getattr(attention, "kv_tie", "plain") for attention in attentions}):
        if tie != "plain":
            found.append(
                f"model.attention.kv_tie={tie}: values behind a norm without weights (only Gemma 4 "
                "has them, with norms on its outputs); train with model.attention.kv_tie=plain"
            )
    if len({_alike(attention) for attention in attentions}) > 1:
        found.append(
            "layers.pattern: layers with different attentions; train with layers.pattern=null, or "
            "a pattern whose attentions differ in RoPE alone"
        )
    if any(attention.state().source is not None for attention in attentions):
        key = "source" if config.layers.source is not None else "share"
        value = getattr(config.layers, key)
        owners = "Gemma 3n and Gemma 4 have such layers, with norms on their outputs"
        way_out = "layers=uniform or layers=window_full"
        if isinstance(attentions[0], LatentAttentionConfig):
            owners = "Mistral Large 4 has such layers, as an image model"
            way_out = "layers=uniform"
        found.append(
            f"layers.{key}={value}: layers that read the cache of another layer (only {owners}); "
            f"train with {way_out}"
        )
    if any(attention.state().window == 1 for attention in attentions):
        found.append(
            "layers.window=1: transformers' cache for a window of 1 keeps every token, and its "
            "generate fails; train with layers.window=2 or more"
        )
    return found


def _alike(attention: AttentionConfig) -> AttentionConfig:
    """Return an attention without what may differ from layer to layer."""
    if not isinstance(attention, SoftmaxAttentionConfig):
        return attention
    path: dict[str, Any] = {"decode_path": "auto"} if hasattr(attention, "decode_path") else {}
    return dataclasses.replace(attention.placed(Placement(rope=False, rope_theta=10000.0)), **path)


def with_values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which values that are the keys before RoPE are there by themselves."""
    found = dict(weights)
    for name, tensor in weights.items():
        if ".self_attn.k_proj." in name:
            # Cloned, since one storage under two names cannot be written.
            found.setdefault(name.replace(".k_proj.", ".v_proj."), tensor.clone())
    return found


def read_layers(read: Any, weights: Mapping[str, Tensor]) -> list[Layer]:
    """Describe the layers of a Llama-like class as its forward pass computes them.

    Args:
        read: The configuration, by transformers.
        weights: The state dict, which alone decides whether Granite's sinks do anything.

    Raises:
        InteropError: Naming the key that contradicts another, or that kvlab has no layer for.
    """
    kinds = _kinds(read)
    thetas = _thetas(read)
    has_sinks = [
        read.model_type == "granite_swa" and not is_idle(weights.get(sinks_name(idx)))
        for idx in range(read.num_hidden_layers)
    ]
    if any(has for has, kind in zip(has_sinks, kinds, strict=True) if kind == FULL):
        raise InteropError(
            "weights: self_attn.sinks of a full_attention layer is above "
            f"{_IDLE_SINK:g}: kvlab has sinks on window layers only"
        )
    return [
        # Where any window layer has sinks all have, those that do nothing among them.
        Layer(read.sliding_window, theta, any(has_sinks))
        if kind == SLIDING
        else Layer(None, theta, sinks=False)
        for kind, theta in zip(kinds, thetas, strict=True)
    ]


def sinks_name(layer: int) -> str:
    """Return what the classes that have sinks call those of a layer."""
    return f"model.layers.{layer}.self_attn.sinks"


def stored_sinks(read: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of sinks that a class has, whether or not they do anything."""
    if read.model_type != "granite_swa":
        return {}
    names = (sinks_name(idx) for idx in range(read.num_hidden_layers))
    return dict.fromkeys(names, (read.num_attention_heads,))


def is_idle(sinks: Tensor | None) -> bool:
    """Return whether a softmax is the same without these sinks, or there are none."""
    if sinks is None or not sinks.is_floating_point():  # refused later, by its name
        return True
    return bool((sinks.float() <= _IDLE_SINK).all())


def _kinds(read: Any) -> list[str]:
    """Return layer_types, or what a class without them does.

    Raises:
        InteropError: Naming the key.
    """
    count, window = read.num_hidden_layers, getattr(read, "sliding_window", None)
    kinds = getattr(read, "layer_types", None)
    if kinds is None:
        is_sliding = read.model_type == "mistral" and window is not None
        kinds = [SLIDING if is_sliding else FULL] * count
    elif len(kinds) != count:
        raise InteropError(
            f"config.json: layer_types has {len(kinds)} entries, and the model {count} layers"
        )
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise InteropError(
                f"config.json: layer_types: kvlab has no {str(kind)[:60]!r} layers, only {FULL} "
                f"and {SLIDING}"
            )
    if read.model_type == "llama" and (window is not None or SLIDING in kinds):
        key = "layer_types" if window is None else "sliding_window"
        raise InteropError(
            f"config.json: {key}: Llama's class sees all tokens whatever it says, but "
            "transformers' cache drops them; leave it out, or set model_type to ministral"
        )
    if SLIDING in kinds:
        if getattr(read, "use_sliding_window", True) is not True:
            raise InteropError(
                "config.json: use_sliding_window is not true, but layer_types names "
                f"{SLIDING} layers; set one of them right"
            )
        if type(window) is not int or window < 2:
            raise InteropError(
                f"config.json: sliding_window ({str(window)[:60]}) must be a whole number of at "
                f"least 2 where layer_types names {SLIDING} layers"
            )
    return list(kinds)


def _thetas(read: Any) -> list[float | None]:
    """Return each layer's base of RoPE, None where it has no RoPE.

    Raises:
        InteropError: Naming the key.
    """
    count, theta = read.num_hidden_layers, rope_theta_of(read)
    if read.model_type == "granite_swa":
        listed = _one_each("layer_rope_theta", read.layer_rope_theta, count)
        return [float(each) if each else None for each in listed]
    if read.model_type == "smollm3":
        return [
            theta if has_rope else None
            for has_rope in _one_each("no_rope_layers", read.no_rope_layers, count)
        ]
    return [theta] * count


def _one_each(key: str, listed: Sequence[Any], count: int) -> Sequence[Any]:
    if len(listed) < count:
        raise InteropError(
            f"config.json: {key} has {len(listed)} entries, and the model {count} layers"
        )
    for each in listed:
        if not isinstance(each, int | float):
            raise InteropError(f"config.json: {key} ({str(each)[:60]}) must be numbers")
    return listed[:count]


@dataclass(frozen=True)
class Arrangement:
    """Layers as kvlab arranges them.

    Args:
        theta: `rope_theta` of the model's own attention; None if that has no RoPE.
        layers: The arrangement, but for what its pattern names.
        others: Base of RoPE of each attention that the pattern names.
    """

    theta: float | None
    layers: LayersConfig
    others: Mapping[str, float | None]


def arranged(layers: Sequence[Layer]) -> Arrangement:
    """Arrange layers: full ones at every p-th place, bases of RoPE by kind or by a pattern.

    Raises:
        InteropError: If full layers are at other places.
    """
    window = window_of(layers)
    settings: dict[str, Any] = {"window": window, "sinks": any(layer.sinks for layer in layers)}
    full_at = [idx for idx, layer in enumerate(layers) if layer.window is None]
    if window is not None:
        settings["name"] = "window"
    if window is not None and full_at:
        every = full_at[0] + 1
        if full_at != list(range(every - 1, len(layers), every)):
            raise InteropError(
                f"config.json: layer_types: the {FULL} layers are {full_at}, counted from 0; "
                "kvlab's are every p-th layer, the p-th first"
            )
        settings |= {"name": "window_full", "full_every": every}
    thetas = [layer.theta for layer in layers]
    local = {layer.theta for layer in layers if layer.window == window}  # without windows: all
    full = {layer.theta for layer in layers if layer.window is None} if window else set()
    if len(local) == 1 and len(full) <= 1 and (local != {None} or full <= {None}):
        (own,) = local
        if own is not None and full == {None}:
            settings["full_rope"] = False
        elif full and full != local:
            (settings["full_rope_theta"],) = full
        return Arrangement(own, LayersConfig(**settings), {})
    own = next(theta for theta in thetas if theta is not None)
    names: dict[float | None, str] = {own: "own"}
    for theta in thetas:
        names.setdefault(theta, "no_rope" if theta is None else f"rope_{len(names)}")
    settings.setdefault("name", "rope_pattern")
    settings["pattern"] = _period([names[theta] for theta in thetas])
    others = {name: theta for theta, name in names.items() if name != "own"}
    return Arrangement(own, LayersConfig(**settings), others)


def _period(names: list[str]) -> list[str]:
    """Return the shortest start of a list that, repeated, gives the list."""
    lengths = range(1, len(names) + 1)
    return next(names[:n] for n in lengths if names[n:] == names[: len(names) - n])
