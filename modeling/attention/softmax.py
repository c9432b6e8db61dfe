"""What every attention with a softmax over keys has: RoPE, windows, sinks, shared keys."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from modeling.attention.base import Attention, AttentionConfig, Placement
from modeling.attention.checks import at_least
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import ReadBlock, attend_held
from modeling.kv_cache import Held
from modeling.rope import Positions, rotate_last


@dataclass(frozen=True, kw_only=True)
class SoftmaxAttentionConfig(AttentionConfig):
    """What every attention with a softmax over keys has."""

    qk_rope_head_dim: int
    """r, dimensions per head that RoPE rotates; 0 leaves RoPE out."""
    v_head_dim: int
    """v, width of a value head."""
    rope_theta: float = 10000.0
    """Base of RoPE's frequencies."""
    attention_bias: bool = False
    """Biases on the projections that have one in transformers' class of the same attention."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights, in training only."""
    sliding_window: int | None = None
    """w, newest tokens that a query sees, itself included; None for all."""
    attention_sinks: bool = False
    """A learned logit per head joins the softmax, and its weight is dropped (gpt-oss)."""
    kv_source_layer: int | None = None
    """Index of the earlier layer whose keys and values are read; None for own ones."""

    PLACED: ClassVar[frozenset[str]] = frozenset(
        {"sliding_window", "attention_sinks", "kv_source_layer"}
    )

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = super().problems()
        found += at_least(self, 1, "v_head_dim")
        found += at_least(self, 0, "qk_rope_head_dim")
        if self.sliding_window is not None and self.sliding_window < 1:
            found.append(
                f"a window of {self.sliding_window} tokens holds not even the query itself; set "
                "layers.window to 1 or more"
            )
        if self.qk_rope_head_dim % 2:
            found.append(
                f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even, since RoPE rotates "
                f"pairs; set {self._sizes_with_even_heads()}"
            )
        if not 0.0 <= self.attention_dropout < 1.0:
            found.append(
                f"attention_dropout ({self.attention_dropout}) must be in [0, 1); "
                "set model.attention.attention_dropout=0.1, say"
            )
        if not (1.0 < self.rope_theta < float("inf")):
            found.append(
                f"rope_theta ({self.rope_theta}) must be a finite number above 1; "
                "set model.attention.rope_theta=10000"
            )
        return found

    @property
    def knows_order(self) -> bool:
        """Whether there is RoPE."""
        return self.qk_rope_head_dim > 0

    def placed(self, placement: Placement) -> Self:
        """Return the configuration of a layer that an arrangement places."""
        return dataclasses.replace(
            self,
            sliding_window=placement.window,
            attention_sinks=placement.sinks,
            kv_source_layer=placement.source,
            qk_rope_head_dim=self.qk_rope_head_dim if placement.rope else 0,
            rope_theta=placement.rope_theta or self.rope_theta,
        )

    def visible_keys(self, context_length: int) -> float:
        """Return the keys that a query sees, in the mean over the context."""
        t, w = context_length, self.sliding_window
        if w is None or w >= t:
            return (t + 1) / 2
        return w * (w + 1) / 2 / t + w * (t - w) / t

    def _sizes_with_even_heads(self) -> str:
        """Say what to set where `qk_rope_head_dim` is odd: what it was worked out from, if so."""
        width, heads, rotated = self.hidden_size, self.num_attention_heads, self.qk_rope_head_dim
        for part in (1, 2):  # all of a head, or MLA's half
            if heads > 0 and part * rotated * heads == width:
                unit = 2 * part * heads
                widths = [str(n) for n in (width // unit * unit, (width // unit + 1) * unit) if n]
                counts = [n for n in range(1, width) if width % (2 * part * n) == 0]
                nearest = min(counts, key=lambda n: abs(n - heads), default=None)
                other = f", or model.num_attention_heads={nearest}" if nearest else ""
                return f"model.hidden_size={' or '.join(widths)}{other}"
        return f"model.attention.qk_rope_head_dim={rotated + 1}"


class SoftmaxAttention(Attention):
    """An attention with a softmax over keys, through a window and with sinks where it is placed so.

    Args:
        config: Widths and heads.
        layer_idx: Which layer of the model it is, from 0.
    """

    config: SoftmaxAttentionConfig

    def __init__(self, config: SoftmaxAttentionConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx)
        sinks = torch.zeros(config.num_attention_heads)
        self.sinks = nn.Parameter(sinks) if config.attention_sinks else None

    def bars_cross_attention(self) -> str | None:
        """Say why the layer cannot attend to other states; None if it can."""
        if self.config.attention_sinks:
            return "cross attention has no sinks, and this layer has"
        return super().bars_cross_attention()

    def _rotate(self, heads: Tensor, positions: Positions, *, back: bool = False) -> Tensor:
        """Rotate the last qk_rope_head_dim dimensions of [b, heads, s, d]; see `apply_rotary`."""
        config = self.config
        return rotate_last(heads, positions, config.qk_rope_head_dim, config.rope_theta, back=back)

    def _attend(
        self,
        query: Tensor,
        held: Held,
        read: ReadBlock,
        num_key_value_heads: int,
        forward_pass: ForwardPass,
        *,
        path: str,
        causal: bool,
        scale: float,
        fold: bool | None = None,
        computed: bool = False,
    ) -> Tensor:
        """Attend with query [b, h, s, d] as this layer does; see `attend_held`."""
        return attend_held(
            query,
            held,
            read,
            num_key_value_heads,
            path=path,
            causal=causal,
            scale=scale,
            forward_pass=forward_pass,
            fold=fold,
            window=self.config.sliding_window,
            sinks=self.sinks,
            dropout=self.config.attention_dropout if self.training else 0.0,
            computed=computed,
        )
