"""One head that is key and value of all query heads: the core of DeepSeek-V4's attention.

Source:
    `DeepseekV4Attention` of transformers, without compressed tokens, and with a whole output
    projection in place of a grouped low-rank one. Its sinks are the arrangement's to place.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from torch import Tensor

from modeling.attention.checks import at_least, at_most, known_path, small
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import entries_of, split_heads
from modeling.attention.registry import register_attention
from modeling.attention.softmax import SoftmaxAttention, SoftmaxAttentionConfig
from modeling.kv_cache import Held, StateSpec
from modeling.linear import Linear
from modeling.norms import RMSNorm, rms_normalised
from modeling.rope import Positions


@register_attention("shared_kv")
@dataclass(frozen=True, kw_only=True)
class SharedKVAttentionConfig(SoftmaxAttentionConfig):
    """All query heads read one head z, d wide, whose last r dimensions are rotated, as both."""

    head_dim: int
    """d, width of z and of a query head: head_dim - qk_rope_head_dim dimensions, then the
    rotated."""
    q_lora_rank: int
    """e, width of the query latent."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in the norms of z, of the query latent and of the queries."""
    decode_path: str = "auto"
    """How a step with a cache reads it: folded, repeated, blocks (one query), or auto."""

    DECODE_PATHS = ("auto", "folded", "repeated", "blocks")

    @classmethod
    def example(cls, name: str) -> Self:
        """Return four query heads and one head of 12 that is key and value."""
        del name
        return cls(
            hidden_size=20,
            num_attention_heads=4,
            head_dim=12,
            v_head_dim=12,
            qk_rope_head_dim=4,
            q_lora_rank=10,
        )

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = super().problems()
        found += at_least(self, 1, "head_dim", "q_lora_rank")
        if self.v_head_dim != self.head_dim:
            found.append(
                f"v_head_dim ({self.v_head_dim}) must equal head_dim ({self.head_dim}), since "
                f"the value is the key; set model.attention.v_head_dim={self.head_dim}"
            )
        found += at_most(self, "qk_rope_head_dim", "head_dim")
        found += small(self, "rms_norm_eps")
        return found + known_path(self)

    def build(self, layer_idx: int = 0) -> "SharedKVAttention":
        """Build the module; `layer_idx` counts from 0."""
        return SharedKVAttention(self, layer_idx)

    def _num_projection_weights(self) -> int:
        m, h, d, e = self.hidden_size, self.num_attention_heads, self.head_dim, self.q_lora_rank
        own = 0 if self.kv_source_layer is not None else m * d
        return m * e + e * h * d + own + h * d * m

    def num_parameters(self) -> int:
        """Return m e + e h d + m d + h d m weights; norms, biases and sinks where there are any.

        The norms of the query latent and of z have e and d weights; with `attention_bias` the two
        down-projections and the output have biases. A layer that reads another's z has neither
        m d, nor a norm of it.
        """
        is_own = self.kv_source_layer is None
        down = self.q_lora_rank + is_own * self.head_dim
        biases = down + self.hidden_size if self.attention_bias else 0
        sinks = self.num_attention_heads * self.attention_sinks
        return self._num_projection_weights() + down + biases + sinks

    def flops_per_token(self, context_length: int) -> float:
        """Return 2 per projection weight, and 4 h d per visible key."""
        per_key = 4 * self.num_attention_heads * self.head_dim
        return 2 * self._num_projection_weights() + per_key * self.visible_keys(context_length)

    def state(self) -> StateSpec:
        """Return z after norm and rotation: d elements a token."""
        return StateSpec(
            per_token={"key_value": (1, self.head_dim)},
            window=self.sliding_window,
            source=self.kv_source_layer,
        )

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with d = elements, but at least r."""
        width = max(elements, self.qk_rope_head_dim, 1)
        return replace(self, head_dim=width, v_head_dim=width)


class _Query(NamedTuple):
    heads: Tensor
    """[b, h, s, d], rotated."""
    positions: Positions


class SharedKVAttention(SoftmaxAttention):
    """Shared key and value. Submodules are named as in transformers' DeepSeek-V4, but `o_proj`.

    A rotated value carries the position of its own token. The output is rotated back by the
    position of the query, so that a value enters by its distance.

    Args:
        config: Widths and heads.
        layer_idx: Which layer of the model it is, from 0.
    """

    config: SharedKVAttentionConfig

    def __init__(self, config: SharedKVAttentionConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx)
        m, h, d = config.hidden_size, config.num_attention_heads, config.head_dim
        e, bias, eps = config.q_lora_rank, config.attention_bias, config.rms_norm_eps
        self.q_a_proj = Linear(m, e, bias=bias)
        self.q_a_norm = RMSNorm(e, eps)
        self.q_b_proj = Linear(e, h * d, bias=False)
        if config.kv_source_layer is None:
            self.kv_proj = Linear(m, d, bias=bias)
            self.kv_norm = RMSNorm(d, eps)
        self.o_proj = Linear(h * d, m, bias=bias)

    def project(
        self, x: Tensor, positions: Positions, source: Tensor, source_positions: Positions
    ) -> tuple[_Query, dict[str, Tensor]]:
        """Return rotated queries; and z, rotated."""
        config = self.config
        query = self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        query = split_heads(query, config.num_attention_heads)  # [b, h, s, d]
        query = rms_normalised(query, config.rms_norm_eps)
        asked = _Query(self._rotate(query, positions), positions)
        if config.kv_source_layer is not None:
            return asked, {}
        z = self.kv_norm(self.kv_proj(source)).unsqueeze(1)  # [b, 1, t, d]
        return asked, {"key_value": self._rotate(z, source_positions)}

    def attend(
        self, query: _Query, held: Held, forward_pass: ForwardPass, *, causal: bool
    ) -> Tensor:
        """Attend; see `Attention.attend`. Returns [b, h, s, d]."""
        config = self.config
        output = self._attend(
            query.heads,
            held,
            entries_of(held, "key_value", "key_value"),
            1,
            forward_pass,
            path=config.decode_path,
            causal=causal,
            scale=config.head_dim**-0.5,
        )
        return self._rotate(output, query.positions, back=True)
