"""Multi-head, multi-query and grouped-query attention: one class, g key-value heads.

Sources:
    MHA: Vaswani et al. 2017. MQA: Shazeer 2019 (arXiv 1911.02150). GQA: Ainslie et al. 2023
    (arXiv 2305.13245). RoPE: Su et al. 2021. Norms of queries and keys: Dehghani et al. 2023
    (arXiv 2302.05442), per head as in Qwen3 (arXiv 2505.09388).
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from modeling.attention.base import Attention
from modeling.attention.checks import at_least, at_most, known_path, small
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import entries_of, split_heads
from modeling.attention.registry import register_attention
from modeling.attention.softmax import SoftmaxAttention, SoftmaxAttentionConfig
from modeling.kv_cache import Held, StateSpec
from modeling.linear import Linear
from modeling.norms import RMSNorm
from modeling.rope import Positions


@register_attention("mha", "mqa", "gqa", "mha_no_rope", "mqa_no_rope")
@dataclass(frozen=True, kw_only=True)
class GroupedQueryAttentionConfig(SoftmaxAttentionConfig):
    """h query heads share g key-value heads: g = h is MHA, g = 1 is MQA, between them GQA."""

    num_key_value_heads: int
    """g, a divisor of num_attention_heads."""
    head_dim: int
    """d, width of a query or key head: head_dim - qk_rope_head_dim dimensions, then the rotated."""
    use_qk_norm: bool = False
    """RMSNorm on every query and key head, before RoPE."""
    qk_norm_eps: float = 1e-6
    """Added to the mean square in these norms."""
    decode_path: str = "auto"
    """How a step with a cache reads it: folded, repeated, blocks (one query), or auto."""

    DECODE_PATHS = ("auto", "folded", "repeated", "blocks")

    @classmethod
    def example(cls, name: str) -> Self:
        """Return four heads of 8; two of keys and values, but for what the name says."""
        return cls(
            hidden_size=20,
            num_attention_heads=4,
            num_key_value_heads={"mha": 4, "mqa": 1}.get(name.split("_")[0], 2),
            head_dim=8,
            v_head_dim=8,
            qk_rope_head_dim=0 if name.endswith("_no_rope") else 8,
        )

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = super().problems()
        found += at_least(self, 1, "num_key_value_heads", "head_dim")
        h, g = self.num_attention_heads, self.num_key_value_heads
        if h >= 1 and g >= 1 and h % g:
            divisors = [str(n) for n in range(1, h + 1) if h % n == 0]
            found.append(
                f"num_attention_heads ({h}) must be a multiple of num_key_value_heads ({g}); "
                f"set model.attention.num_key_value_heads to one of {', '.join(divisors)}"
            )
        found += at_most(self, "qk_rope_head_dim", "head_dim")
        found += small(self, "qk_norm_eps")
        return found + known_path(self)

    def problems_as(self, name: str) -> list[str]:
        """Return why these values are not what `name` (mha, mha_no_rope, gqa, ...) promises.

        Only `_no_rope` is a promise about RoPE.
        """
        found = []
        kind = name.removesuffix("_no_rope")
        required = {"mha": self.num_attention_heads, "mqa": 1}.get(kind, self.num_key_value_heads)
        if self.num_key_value_heads != required:
            found.append(
                f"attention={name} has num_key_value_heads = {required}, not "
                f"{self.num_key_value_heads}; use attention=gqa for that"
            )
        if kind != name and self.qk_rope_head_dim > 0:
            found.append(
                f"attention={name} means no RoPE, but qk_rope_head_dim is {self.qk_rope_head_dim}; "
                f"use attention={kind} for that"
            )
        return found

    def build(self, layer_idx: int = 0) -> Attention:
        """Build the module; `layer_idx` counts from 0."""
        return GroupedQueryAttention(self, layer_idx)

    def _num_projection_weights(self) -> int:
        m, h, g = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        d, v = self.head_dim, self.v_head_dim
        own = 0 if self.kv_source_layer is not None else g * d + g * v
        return m * (h * d + own + h * v)

    def num_parameters(self) -> int:
        """Return m (h d + g d + g v + h v) weights; biases, norms and sinks where there are any.

        A layer that reads another's keys and values has none of the g d + g v.
        """
        m, h, g = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        d, v, is_own = self.head_dim, self.v_head_dim, self.kv_source_layer is None
        biases = h * d + is_own * (g * d + g * v) + m if self.attention_bias else 0
        norms = (1 + is_own) * d if self.use_qk_norm else 0
        return self._num_projection_weights() + biases + norms + h * self.attention_sinks

    def flops_per_token(self, context_length: int) -> float:
        """Return 2 per projection weight, and 2 h (d + v) per visible key."""
        per_key = 2 * self.num_attention_heads * (self.head_dim + self.v_head_dim)
        return 2 * self._num_projection_weights() + per_key * self.visible_keys(context_length)

    def state(self) -> StateSpec:
        """Return the rotated keys and the values of the g heads: g (d + v) elements a token."""
        return StateSpec(
            per_token={
                "key": (self.num_key_value_heads, self.head_dim),
                "value": (self.num_key_value_heads, self.v_head_dim),
            },
            window=self.sliding_window,
            source=self.kv_source_layer,
        )

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with the divisor of h for g that comes nearest."""
        h, per_head = self.num_attention_heads, self.head_dim + self.v_head_dim
        divisors = (g for g in range(1, h + 1) if h % g == 0)
        nearest = min(divisors, key=lambda g: abs(g * per_head - elements))
        return replace(self, num_key_value_heads=nearest)


class GroupedQueryAttention(SoftmaxAttention):
    """MHA, MQA and GQA. Submodules are named as in transformers' Llama, and Qwen3 for the norms.

    Args:
        config: Widths and heads.
        layer_idx: Which layer of the model it is, from 0.
    """

    config: GroupedQueryAttentionConfig

    def __init__(self, config: GroupedQueryAttentionConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx)
        m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        d, v, bias = config.head_dim, config.v_head_dim, config.attention_bias
        self.q_proj = Linear(m, h * d, bias=bias)
        if config.kv_source_layer is None:
            self.k_proj = Linear(m, g * d, bias=bias)
            self.v_proj = Linear(m, g * v, bias=bias)
        self.o_proj = Linear(h * v, m, bias=bias)
        if config.use_qk_norm:
            self.q_norm = RMSNorm(d, config.qk_norm_eps)
            if config.kv_source_layer is None:
                self.k_norm = RMSNorm(d, config.qk_norm_eps)

    def project(
        self, x: Tensor, positions: Positions, source: Tensor, source_positions: Positions
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rotated queries [b, h, s, d]; and rotated keys and values."""
        config = self.config
        query = split_heads(self.q_proj(x), config.num_attention_heads)  # [b, h, s, d]
        if config.kv_source_layer is not None:
            query = self.q_norm(query) if config.use_qk_norm else query
            return self._rotate(query, positions), {}
        key = split_heads(self.k_proj(source), config.num_key_value_heads)  # [b, g, t, d]
        value = split_heads(self.v_proj(source), config.num_key_value_heads)  # [b, g, t, v]
        if config.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self._rotate(query, positions), self._rotate(key, source_positions)
        return query, {"key": key, "value": value}

    def attend(
        self, query: Tensor, held: Held, forward_pass: ForwardPass, *, causal: bool
    ) -> Tensor:
        """Attend; see `Attention.attend`. [b, h, s, d] -> [b, h, s, v]."""
        config = self.config
        return self._attend(
            query,
            held,
            entries_of(held, "key", "value"),
            config.num_key_value_heads,
            forward_pass,
            path=config.decode_path,
            causal=causal,
            scale=config.head_dim**-0.5,
        )
