"""What the oracles share: one token, one query and one key at a time, in float64."""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from modeling.attention import SoftmaxAttentionConfig

Weights = Mapping[str, Tensor]


class Producer(NamedTuple):
    """The earlier layer whose keys and values a layer reads."""

    weights: Weights
    """Its module's state dict."""
    x: Tensor
    """[b, s, m], what it was given."""


class Given(TypedDict, total=False):
    """What an oracle may be given in addition to the input; None is as if it were not there."""

    attention_mask: Tensor | None
    """Bool, [b, t], True where a key is real, or [b, s, t], True where a query may see a key."""
    key_value_states: Tensor | None
    """[b, t, m] for cross attention."""
    key_value_positions: Tensor | None
    """[b, t]; 0 to t - 1 if not given."""
    producer: Producer | None
    """The layer whose keys and values are read, if the configuration names one."""


class Kept(NamedTuple):
    """Where keys and values come from."""

    weights: Weights
    """State dict of the module that makes them."""
    x: Tensor
    """[b, t, m], what they are made of."""
    positions: Tensor
    """[b, t]."""


def kept_of(weights: Weights, x: Tensor, positions: Tensor, given: Given) -> Kept:
    """Return where keys and values come from: the input, other states, or another layer."""
    if (producer := given.get("producer")) is not None:
        return Kept(producer.weights, producer.x, positions)
    if (states := given.get("key_value_states")) is None:
        return Kept(weights, x, positions)
    where = given.get("key_value_positions")
    if where is None:
        where = torch.arange(states.shape[1]).expand(states.shape[:2])
    return Kept(weights, states, where)


def sinks_of(config: SoftmaxAttentionConfig, weights: Weights) -> list[Tensor | None]:
    """Return the sink of each head, None where there is none."""
    return [*weights["sinks"]] if config.attention_sinks else [None] * config.num_attention_heads


def linear(weights: Weights, name: str, row: Tensor) -> Tensor:
    """Project one token."""
    product = weights[f"{name}.weight"].double() @ row.double()
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias.double()


def rms_norm(row: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise one vector."""
    return weight.double() * row / ((row**2).mean() + eps).sqrt()


def rotate_tail(
    row: Tensor,
    position: Tensor,
    width: int,
    theta: float,
) -> Tensor:
    """Rotate the last `width` dimensions: dimension j together with j + width / 2."""
    start = row.shape[0] - width
    out = list(row.unbind())
    for j in range(width // 2):
        angle = float(position) * theta ** (-2 * j / width)
        first, second = row[start + j], row[start + j + width // 2]
        out[start + j] = first * math.cos(angle) - second * math.sin(angle)
        out[start + j + width // 2] = second * math.cos(angle) + first * math.sin(angle)
    return torch.stack(out) if out else row


def visible(
    config: SoftmaxAttentionConfig, given: Given, b: int, i: int, num_keys: int
) -> list[int]:
    """Return the keys that query i of row b sees: with a window w, those j with i - w < j <= i."""
    seen = range(i + 1) if given.get("key_value_states") is None else range(num_keys)
    if (window := config.sliding_window) is not None:
        seen = range(max(0, i - window + 1), i + 1)
    attention_mask = given.get("attention_mask")
    if attention_mask is None:
        return list(seen)
    row = attention_mask[b, i] if attention_mask.dim() == 3 else attention_mask[b]
    return [j for j in seen if bool(row[j])]


def attend_one(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    width: int,
    sink: Tensor | None = None,
) -> Tensor:
    """Attend with one query; a sink is a further score whose weight is dropped."""
    if not keys:
        return torch.zeros(width, dtype=torch.float64)
    scores = torch.stack([(query * key).sum() / math.sqrt(query.shape[0]) for key in keys])
    if sink is not None:
        scores = torch.cat((scores, sink.double().reshape(1)))
    weights = torch.exp(scores - scores.detach().max())
    weights = (weights / weights.sum())[: len(keys)]
    return sum(
        (weight * value for weight, value in zip(weights, values, strict=True)),
        torch.zeros(width, dtype=torch.float64),
    )
