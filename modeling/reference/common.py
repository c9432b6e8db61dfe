"""What the oracles share: one token, one query and one key at a time, in float64."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


class Producer(NamedTuple):
    """The earlier layer whose keys and values a layer reads."""

    weights: Weights
    """Its module's state dict."""
    x: Tensor
    """[b, s, m], what it was given."""


def positions_of(states: Tensor, given: Tensor | None) -> Tensor:
    """Return the positions of states [b, t, m]: those given, or 0 to t - 1."""
    return torch.arange(states.shape[1]).expand(states.shape[:2]) if given is None else given


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
    i: int,
    num_keys: int,
    causal: bool,
    attention_mask: Tensor | None,
    b: int,
    window: int | None = None,
) -> list[int]:
    """Return the keys that query i of row b sees: with a window w, those j with i - w < j <= i."""
    seen = range(i + 1) if causal else range(num_keys)
    if window is not None:
        seen = range(max(0, i - window + 1), i + 1)
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
