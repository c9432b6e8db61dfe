"""What every attention with a softmax over keys has: RoPE, windows, sinks, shared keys."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from modeling.attention.base import AttentionConfig, Placement, at_least


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
