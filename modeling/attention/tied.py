"""K = V: one projection is value and, once rotated, key; it alone is cached (g d a token).

Sources:
    Keys as values: Gemma 4's full layers (transformers, `attention_k_eq_v`). Without norms, and
    with learned positions: arXiv 2606.04032.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from modeling.attention.forward_pass import ForwardPass
from modeling.attention.grouped_query import GroupedQueryAttentionConfig
from modeling.attention.kernel import split_heads
from modeling.attention.registry import register_attention
from modeling.attention.softmax import SoftmaxAttention
from modeling.kv_cache import Held, StateSpec
from modeling.linear import Linear
from modeling.norms import RMSNorm, rms_normalised
from modeling.rope import HeldPositions, Positions


@register_attention("gqa_tied", "mqa_tied")
@dataclass(frozen=True, kw_only=True)
class TiedAttentionConfig(GroupedQueryAttentionConfig):
    """Grouped-query attention whose keys and values come from one projection u = W x, [g, d]."""

    kv_tie: str = "plain"
    """plain: V = u, K = RoPE(u), K = RoPE(RMSNorm(u)) with use_qk_norm. norm: V = RMSNorm(u)
    without a weight, K = RoPE(RMSNorm(u)) with one."""

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = super().problems()
        if self.v_head_dim != self.head_dim:
            found.append(
                f"v_head_dim ({self.v_head_dim}) must equal head_dim ({self.head_dim}), since "
                f"values are keys; set model.attention.v_head_dim={self.head_dim}"
            )
        if self.kv_tie not in ("plain", "norm"):
            found.append(
                f"kv_tie ('{self.kv_tie}') must be plain or norm; set model.attention.kv_tie=plain"
            )
        return found

    def problems_as(self, name: str) -> list[str]:
        """Return why these values are not what `name` (gqa_tied or mqa_tied) promises."""
        if name == "gqa_tied" or self.num_key_value_heads == 1:
            return []
        return [
            f"attention={name} has num_key_value_heads = 1, not {self.num_key_value_heads}; use "
            "attention=gqa_tied for that"
        ]

    @property
    def has_key_norm(self) -> bool:
        """Whether keys have a norm of their own, which a layer that reads another's has too."""
        return self.use_qk_norm or self.kv_tie == "norm"

    def build(self, layer_idx: int = 0) -> "TiedAttention":
        """Build the module; `layer_idx` counts from 0."""
        return TiedAttention(self, layer_idx)

    def _num_projection_weights(self) -> int:
        h, g = self.num_attention_heads, self.num_key_value_heads
        own = 0 if self.kv_source_layer is not None else g
        return self.hidden_size * (2 * h + own) * self.head_dim

    def num_parameters(self) -> int:
        """Return m (2 h + g) d weights; biases, norms and sinks where there are any.

        A layer that reads another's u has none of the g d, but its own norm of keys.
        """
        h, d = self.num_attention_heads, self.head_dim
        own = 0 if self.kv_source_layer is not None else self.num_key_value_heads
        biases = (h + own) * d + self.hidden_size if self.attention_bias else 0
        norms = (self.use_qk_norm + self.has_key_norm) * d
        return self._num_projection_weights() + biases + norms + h * self.attention_sinks

    def state(self) -> StateSpec:
        """Return u of the g heads, g d elements a token: before any norm, before rotation."""
        return StateSpec(
            per_token={"key_value": (self.num_key_value_heads, self.head_dim)},
            window=self.sliding_window,
            source=self.kv_source_layer,
            needs_positions=self.qk_rope_head_dim > 0,
        )

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with the divisor of h for g that comes nearest."""
        h, d = self.num_attention_heads, self.head_dim
        divisors = (g for g in range(1, h + 1) if h % g == 0)
        return replace(self, num_key_value_heads=min(divisors, key=lambda g: abs(g * d - elements)))


class TiedAttention(SoftmaxAttention):
    """K = V. Submodules are named as in transformers' Gemma 4, which has no `v_proj` here either.

    What is cached is u; keys are made when they are read: normalised and rotated, in a decoding
    step block by block, so that they never exist for all tokens at once.

    Args:
        config: Widths and heads.
        layer_idx: Which layer of the model it is, from 0.
    """

    config: TiedAttentionConfig

    def __init__(self, config: TiedAttentionConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx)
        m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        d, bias = config.head_dim, config.attention_bias
        self.q_proj = Linear(m, h * d, bias=bias)
        if config.kv_source_layer is None:
            self.k_proj = Linear(m, g * d, bias=bias)
        self.o_proj = Linear(h * d, m, bias=bias)
        if config.use_qk_norm:
            self.q_norm = RMSNorm(d, config.qk_norm_eps)
        if config.has_key_norm:
            self.k_norm = RMSNorm(d, config.qk_norm_eps)

    def project(
        self, x: Tensor, positions: Positions, source: Tensor, source_positions: Positions
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rotated queries [b, h, s, d]; and u."""
        config = self.config
        query = split_heads(self.q_proj(x), config.num_attention_heads)  # [b, h, s, d]
        query = self.q_norm(query) if config.use_qk_norm else query
        query = self._rotate(query, positions)
        if config.kv_source_layer is not None:
            return query, {}
        return query, {"key_value": split_heads(self.k_proj(source), config.num_key_value_heads)}

    def attend(
        self, query: Tensor, held: Held, forward_pass: ForwardPass, *, causal: bool
    ) -> Tensor:
        """Attend; see `Attention.attend`. [b, h, s, d] -> [b, h, s, d]."""
        config = self.config
        return self._attend(
            query,
            held,
            partial(self._key_and_value, held),
            config.num_key_value_heads,
            forward_pass,
            path=config.decode_path,
            causal=causal,
            scale=config.head_dim**-0.5,
            computed=config.has_key_norm or config.qk_rope_head_dim > 0,
        )

    def _key_and_value(
        self, held: Held, start: int, end: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values [b, g, end - start, d] of a part of what is held."""
        config = self.config
        key = value = held.read("key_value", dtype, start, end)
        if config.kv_tie == "norm":
            value = rms_normalised(value, config.qk_norm_eps)
        if config.has_key_norm:
            key = self.k_norm(key)
        if config.qk_rope_head_dim == 0:
            return key, value
        assert held.positions is not None
        kind = HeldPositions if held.is_cached else Positions
        positions = kind(held.positions[..., start:end])
        return self._rotate(key, positions), value
