"""The same attention where an arrangement puts it: in a window, without RoPE, reading another's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling.attention import Attention, AttentionConfig, ForwardPass, Placement
from modeling.errors import ModelConfigError
from modeling.kv_cache import LayerCache, StateSpec
from modeling.reference import Producer, oracle_of

PLACEMENTS = {
    "in a window of 3 tokens": Placement(window=3),
    "in a window of 3 tokens with sinks": Placement(window=3, sinks=True),
    "without RoPE": Placement(rope=False),
    "reading another layer": Placement(source=0),
    "reading another layer's window": Placement(window=3, source=0),
}


def placements(config: AttentionConfig) -> dict[str, AttentionConfig]:
    """Return what becomes of an attention under arrangements, by what each does to it.

    Those that it refuses are left out, and so are those that leave it as it is.
    """
    found: dict[str, AttentionConfig] = {}
    for said, placement in PLACEMENTS.items():
        try:
            placed = config.placed(placement)
            if placement.source is not None:
                placed = reading(config.placed(dataclasses.replace(placement, source=None)), placed)
        except ModelConfigError:
            continue
        if placed not in (config, *found.values()):
            found[said] = placed
    return found


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(AttentionConfig):
    """A layer that reads another's keys and values, and that one; their outputs are added."""

    producer: AttentionConfig
    reader: AttentionConfig

    def build(self, layer_idx: int = 0) -> Attention:
        """Build both; the producer is the layer that the reader names."""
        del layer_idx
        return cast(Attention, Reading(self))

    @property
    def knows_order(self) -> bool:
        """Whether one of them does."""
        return self.producer.knows_order or self.reader.knows_order

    def num_parameters(self) -> int:
        """Return those of both."""
        return self.producer.num_parameters() + self.reader.num_parameters()

    def flops_per_token(self, context_length: int) -> float:
        """Return those of both."""
        layers = (self.producer, self.reader)
        return sum(layer.flops_per_token(context_length) for layer in layers)

    def state(self) -> StateSpec:
        """Return the producer's, which alone is kept."""
        return self.producer.state()


def reading(producer: AttentionConfig, reader: AttentionConfig) -> ReadingConfig:
    """Put a layer that reads another's keys and values together with that one."""
    return ReadingConfig(
        hidden_size=producer.hidden_size,
        num_attention_heads=producer.num_attention_heads,
        producer=producer,
        reader=reader,
    )


def changed(config: AttentionConfig, **fields: Any) -> AttentionConfig:
    """Return the configuration with other values; of two layers, both."""
    if isinstance(config, ReadingConfig):
        return reading(changed(config.producer, **fields), changed(config.reader, **fields))
    return dataclasses.replace(config, **fields)


class Reading(nn.Module):
    """Two layers with the same input, as `Attention` is called; the second reads the first.

    Args:
        config: Of both.
    """

    def __init__(self, config: ReadingConfig) -> None:
        super().__init__()
        source = config.reader.state().source
        assert source is not None
        self.config = config
        self.source = source
        self.producer = config.producer.build(source)
        self.reader = config.reader.build(source + 1)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: LayerCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        forward_pass: ForwardPass | None = None,
    ) -> Tensor:
        """Return the sum of both, [b, s, m]; arguments as in `Attention.forward`."""
        given = forward_pass or ForwardPass(attention_mask)
        shared = ForwardPass(given.attention_mask, given.document_start, {self.source})
        own = self.producer(x, positions, cache, forward_pass=shared)
        return own + self.reader(x, positions, forward_pass=shared)

    def residual_projections(self) -> list[nn.Linear]:
        """Return those of both."""
        return [*self.producer.residual_projections(), *self.reader.residual_projections()]

    def new_cache(
        self, batch_size: int, max_length: int, dtype: torch.dtype | None = None
    ) -> LayerCache:
        """Return the producer's."""
        return self.producer.new_cache(batch_size, max_length, dtype)


def oracle_output(
    config: AttentionConfig,
    module: nn.Module,
    x: Tensor,
    positions: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    """Return what the oracle of an attention, or of two, says, [b, s, m]; None if there is none.

    Args:
        config: Of the module.
        module: Whose weights are taken.
        x: [b, s, m].
        positions: [b, s].
        attention_mask: Bool, [b, s] or [b, s, s].
    """
    layers: list[tuple[AttentionConfig, nn.Module]] = [(config, module)]
    if isinstance(config, ReadingConfig):
        assert isinstance(module, Reading)
        layers = [(config.producer, module.producer), (config.reader, module.reader)]
    first = Producer(layers[0][1].state_dict(), x)
    outputs = []
    for layer, its in layers:
        oracle = oracle_of(layer)
        if oracle is None:
            return None
        producer = None if layer.state().source is None else first
        weights = its.state_dict()
        given = {"attention_mask": attention_mask, "producer": producer}
        outputs.append(oracle(layer, weights, x, positions, **given))
    return torch.stack(outputs).sum(0)
