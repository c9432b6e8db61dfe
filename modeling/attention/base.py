"""The contract of an attention: its configuration and its module."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from modeling.attention.checks import at_least
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import join_heads
from modeling.errors import ModelConfigError
from modeling.kv_cache import Held, LayerCache, StateSpec
from modeling.rope import Positions


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What an arrangement asks of the attention of one layer.

    Args:
        window: Newest tokens that a query sees, itself included; None for all.
        rope: Whether the layer keeps the RoPE that its configuration describes.
        rope_theta: Base of its frequencies; None for the configuration's own.
        sinks: Whether a learned logit per head joins the softmax, whose weight is dropped.
        source: Index of the earlier layer whose keys and values it reads; None for its own.
    """

    window: int | None = None
    rope: bool = True
    rope_theta: float | None = None
    sinks: bool = False
    source: int | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ABC):
    """What every way to mix tokens has; a variant adds its own fields.

    Fields are spelt as in transformers' Llama and DeepSeek-V3. One configuration describes one
    layer: in a model whose layers differ, each has its own.

    Raises:
        ModelConfigError: If a value or a combination is impossible; all problems at once.
    """

    hidden_size: int
    """m, width of the residual stream."""
    num_attention_heads: int
    """h, query heads."""

    PLACED: ClassVar[frozenset[str]] = frozenset()
    """Fields that an arrangement sets, layer by layer, and no user."""
    DECODE_PATHS: ClassVar[tuple[str, ...]] = ()
    """What a field `decode_path` can be, if there is one: ways that give the same output."""

    @classmethod
    def example(cls, name: str) -> Self:
        """Return a small attention of a registered name: a few heads, widths of some dozens.

        The promises in `modeling.contract` are checked on it. A class with further required fields
        gives them here.
        """
        del name
        return cls(hidden_size=20, num_attention_heads=4)

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ModelConfigError(problems)

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        return at_least(self, 1, "hidden_size", "num_attention_heads")

    def settings(self, name: str) -> dict[str, Any]:
        """Return what `attention_config` takes: the registered name, and what a user may set."""
        fields = dataclasses.asdict(self)
        return {"name": name} | {k: v for k, v in fields.items() if k not in self.PLACED}

    def problems_as(self, name: str) -> list[str]:
        """Return every reason why these values do not deserve the registered `name`."""
        del name
        return []

    @property
    def knows_order(self) -> bool:
        """Whether its output depends on the order of the tokens before (RoPE, a recurrence)."""
        return False

    def placed(self, placement: Placement) -> Self:
        """Return the configuration of a layer that an arrangement places.

        Raises:
            ModelConfigError: If this attention cannot be placed so.
        """
        if placement == Placement():
            return self
        raise ModelConfigError(
            f"{type(self).__name__.removesuffix('Config')} has no windows, sinks or shared layers; "
            "set layers=uniform"
        )

    @abstractmethod
    def build(self, layer_idx: int = 0) -> Attention:
        """Build the module; `layer_idx` counts from 0."""

    @abstractmethod
    def num_parameters(self) -> int:
        """Return the number of parameters of the built module, in closed form."""

    @abstractmethod
    def flops_per_token(self, context_length: int) -> float:
        """Return forward FLOPs per token: a multiply-add is two, causal, mean over the context."""

    @abstractmethod
    def state(self) -> StateSpec:
        """Return what the layer keeps of the tokens it has seen."""

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with a cache of `elements` per token, or the nearest to it.

        Which width is free for that is the attention's to say; one that has none stays as it is.
        """
        del elements
        return self


class Attention(nn.Module, ABC):
    """An attention layer: [b, s, m] in, [b, s, m] out.

    A variant says two things: `project`, what becomes of new tokens, and `attend`, how queries
    read what is held. What lies between, the cache or another layer's keys, is the same for all.

    Args:
        config: Its configuration, kept as `self.config`.
        layer_idx: Which layer of the model it is, from 0.
    """

    o_proj: nn.Module
    """Projects the joined heads into the residual stream."""

    def __init__(self, config: AttentionConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.state = config.state()

    @abstractmethod
    def project(
        self, x: Tensor, positions: Positions, source: Tensor, source_positions: Positions
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return queries, in whatever form `attend` takes, and what is kept of the new tokens.

        Args:
            x: [b, s, m] hidden states that ask.
            positions: Theirs, for RoPE.
            source: [b, s', m] hidden states that keys and values come from: x, but for cross
                attention.
            source_positions: Theirs.

        Returns:
            Queries, and one tensor [b, heads, s', width] for each entry of `config.state()`; none
            for a layer that reads another's.
        """

    @abstractmethod
    def attend(self, query: Any, held: Held, forward_pass: ForwardPass, *, causal: bool) -> Tensor:
        """Return [b, h, s, v], what the queries find in the held tokens.

        Args:
            query: As `project` returns it.
            held: The tokens that are held, the queries' own last.
            forward_pass: Padding and documents.
            causal: Whether no query sees what comes after it; not so in cross attention.
        """

    def bars_cross_attention(self) -> str | None:
        """Say why the layer cannot attend to other states; None if it can."""
        if self.state.window is not None:
            return "cross attention sees all keys, and this layer has a window"
        if self.state.source is not None:
            return (
                f"this layer reads the keys of layer {self.state.source}, and has no projection "
                "for other states"
            )
        return None

    def forward(
        self,
        x: Tensor,
        positions: Tensor | Positions,
        cache: LayerCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        forward_pass: ForwardPass | None = None,
        key_value_states: Tensor | None = None,
        key_value_positions: Tensor | None = None,
    ) -> Tensor:
        """Attend, causally unless `key_value_states` are given.

        Args:
            x: [b, s, m] hidden states.
            positions: [s] or [b, s] integer positions of x, for RoPE; any values.
            cache: If given, the s tokens are appended to it and attend to all t tokens it holds.
            attention_mask: Bool, [b, t], True where a key is a real token, or [b, s, t], True where
                a query may see a key; causality applies too. A query with nothing to attend to
                gets zeros from attention.
            forward_pass: Within a model, what its layers share; in place of `attention_mask`.
            key_value_states: [b, t', m]; keys and values come from here instead of x (cross
                attention) and nothing is masked causally. With a cache they are appended to it
                once; later steps pass an empty [b, 0, m] to attend to what is cached.
            key_value_positions: [t'] or [b, t'] positions of `key_value_states`; 0 to t'-1 if not
                given.

        Returns:
            [b, s, m].

        Raises:
            ValueError: For cross attention through a window, with sinks or where another layer's
                keys and values are read; or if that layer has computed none.
        """
        forward_pass = forward_pass or ForwardPass(attention_mask)
        positions = Positions.of(positions)
        source, source_positions = x, positions
        if key_value_states is not None:
            if reason := self.bars_cross_attention():
                raise ValueError(reason)
            source = key_value_states
            if key_value_positions is None:
                key_value_positions = torch.arange(source.shape[1], device=x.device)
            source_positions = Positions(key_value_positions)
        query, new = self.project(x, positions, source, source_positions)
        if self.state.source is not None:
            held = forward_pass.held_by(self.state.source)
        elif cache is not None:
            held = cache.update(source_positions.index, **new)
        else:
            held = Held(entries=new, positions=source_positions.index)
        forward_pass.keep(self.layer_idx, held)
        output = self.attend(query, held, forward_pass, causal=key_value_states is None)
        return self.o_proj(join_heads(output))  # [b, s, m]

    def residual_projections(self) -> list[nn.Linear]:
        """Return the projections that write into the residual stream, for depth-scaled init."""
        assert isinstance(self.o_proj, nn.Linear)
        return [self.o_proj]

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache:
        """Return an empty cache for this layer.

        Args:
            batch_size: Sequences decoded together.
            max_length: Tokens per sequence that may be seen.
            dtype: Of the stored elements; the module's own if not given.
            device: Where they live; the module's own if not given.
        """
        weight = next(self.parameters())
        return LayerCache(
            self.state,
            batch_size,
            max_length,
            dtype=dtype or weight.dtype,
            device=device or weight.device,
        )
