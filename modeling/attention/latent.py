"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), with or without RoPE.

Keys and values are projections of one small latent per token. Only that latent, after its norm,
and one rotated key shared by all heads are cached: c + r elements per token and layer.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from modeling.attention.checks import at_least, known_path, small
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import entries_of, split_heads
from modeling.attention.registry import register_attention
from modeling.attention.softmax import SoftmaxAttention, SoftmaxAttentionConfig
from modeling.kv_cache import Held, StateSpec
from modeling.linear import Linear
from modeling.norms import RMSNorm
from modeling.rope import Positions


@register_attention("mla", "mla_no_rope")
@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig(SoftmaxAttentionConfig):
    """A latent of width c stands for keys and values; r further dimensions carry RoPE, or none."""

    kv_lora_rank: int
    """c, width of the key-value latent."""
    qk_nope_head_dim: int
    """d, width of a query or key head without RoPE."""
    q_lora_rank: int | None = None
    """e, width of the query latent; null projects queries at full rank."""
    latent_norm_eps: float = 1e-6
    """Added to the mean square in the norms of the latents."""
    latent_scale: bool = False
    """Multiply latents by sqrt(hidden_size / their width) behind their norms (LongCat-Flash)."""
    decode_path: str = "auto"
    """How a step with a cache reads it: absorbed, expanded, blocks (absorbed, one query), or auto
    (fewer multiplications)."""

    DECODE_PATHS = ("auto", "absorbed", "expanded", "blocks")

    @classmethod
    def example(cls, name: str) -> Self:
        """Return four heads, all widths different."""
        return cls(
            hidden_size=20,
            num_attention_heads=4,
            kv_lora_rank=12,
            qk_nope_head_dim=8,
            qk_rope_head_dim=0 if name.endswith("_no_rope") else 6,
            v_head_dim=10,
        )

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = super().problems()
        found += at_least(self, 1, "kv_lora_rank", "qk_nope_head_dim")
        widest = self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)
        if self.kv_lora_rank > widest:
            found.append(
                f"kv_lora_rank ({self.kv_lora_rank}) must not exceed num_attention_heads x "
                f"(qk_nope_head_dim + v_head_dim) = {widest}, beyond which it compresses nothing; "
                f"set model.attention.kv_lora_rank to {widest} or less"
            )
        if self.q_lora_rank is not None and not 1 <= self.q_lora_rank <= self.hidden_size:
            found.append(
                f"q_lora_rank ({self.q_lora_rank}) must be from 1 to hidden_size "
                f"({self.hidden_size}); set model.attention.q_lora_rank, null for none"
            )
        found += small(self, "latent_norm_eps")
        return found + known_path(self)

    def problems_as(self, name: str) -> list[str]:
        """Return why these values are not what `name` (mla or mla_no_rope) promises."""
        if (name == "mla") == (self.qk_rope_head_dim > 0):
            return []
        other = "mla_no_rope" if name == "mla" else "mla"
        what = "decoupled RoPE" if name == "mla" else "no RoPE"
        return [
            f"attention={name} means {what}, but qk_rope_head_dim is {self.qk_rope_head_dim}; "
            f"use attention={other} for that"
        ]

    def scale_of_latent(self, width: int) -> float:
        """Return what a latent of this width is multiplied by.

        Behind a norm each element is about 1, in a latent as in the m elements that other
        projections begin from. Without the scale fewer elements make smaller keys, values and
        queries, by sqrt(width / m).
        """
        return (self.hidden_size / width) ** 0.5 if self.latent_scale else 1.0

    def build(self, layer_idx: int = 0) -> "LatentAttention":
        """Build the module; `layer_idx` counts from 0."""
        return LatentAttention(self, layer_idx)

    def _num_projection_weights(self) -> int:
        m, h, c, e = (
            self.hidden_size,
            self.num_attention_heads,
            self.kv_lora_rank,
            self.q_lora_rank,
        )
        d, r, v = self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim
        queries = m * h * (d + r) if e is None else m * e + e * h * (d + r)
        own = 0 if self.kv_source_layer is not None else m * (c + r)
        return queries + own + c * h * (d + v) + h * v * m

    def num_parameters(self) -> int:
        """Return m h (d + r) [or m e + e h (d + r)] + m (c + r) + c h (d + v) + h v m, and norms.

        The norms have c (and e) weights; with `attention_bias` the two down-projections and the
        output have biases, as in transformers' DeepSeek-V3. A layer that reads another's latents
        has no m (c + r) and no norm of its own for them.
        """
        e, is_own = self.q_lora_rank or 0, self.kv_source_layer is None
        norms = is_own * self.kv_lora_rank + e
        down = e + is_own * (self.kv_lora_rank + self.qk_rope_head_dim)
        biases = down + self.hidden_size if self.attention_bias else 0
        sinks = self.num_attention_heads * self.attention_sinks
        return self._num_projection_weights() + norms + biases + sinks

    def flops_per_token(self, context_length: int) -> float:
        """Return 2 per projection weight, and 2 h (d + r + v) per visible key (expanded path)."""
        per_key = self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim
        attention = 2 * self.num_attention_heads * per_key * self.visible_keys(context_length)
        return 2 * self._num_projection_weights() + attention

    def state(self) -> StateSpec:
        """Return the normalised latent with the rotated shared key behind it: c + r elements."""
        return StateSpec(
            per_token={"latent": (1, self.kv_lora_rank + self.qk_rope_head_dim)},
            window=self.sliding_window,
            source=self.kv_source_layer,
        )

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with c = elements - r, as far as the range of c reaches."""
        widest = self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)
        rank = min(max(elements - self.qk_rope_head_dim, 1), widest)
        return replace(self, kv_lora_rank=rank)


class LatentAttention(SoftmaxAttention):
    """MLA. Submodules are named as in transformers' DeepSeek-V3.

    Two ways compute the same. *Expanded*, for training and prefill: `kv_b_proj` turns each latent
    into keys and values of h heads. *Absorbed*, for decoding: the key half of `kv_b_proj` moves
    into the query and its value half behind the attention, so that the h heads read the cached
    latent itself, as in multi-query attention, and the cache is never expanded.

    Args:
        config: Widths and ranks.
        layer_idx: Which layer of the model it is, from 0.
    """

    config: LatentAttentionConfig

    def __init__(self, config: LatentAttentionConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx)
        m, h, c = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        d, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        bias, eps = config.attention_bias, config.latent_norm_eps
        if config.q_lora_rank is None:
            self.q_proj = Linear(m, h * (d + r), bias=False)
        else:
            self.q_a_proj = Linear(m, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
            self.q_b_proj = Linear(config.q_lora_rank, h * (d + r), bias=False)
        if config.kv_source_layer is None:
            self.kv_a_proj_with_mqa = Linear(m, c + r, bias=bias)
            self.kv_a_layernorm = RMSNorm(c, eps)
        self.kv_b_proj = Linear(c, h * (d + v), bias=False)
        self.o_proj = Linear(h * v, m, bias=bias)

    def project(
        self, x: Tensor, positions: Positions, source: Tensor, source_positions: Positions
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Return queries [b, h, s, d] and [b, h, s, r], rotated; and the latents."""
        query = self._queries(x, positions)
        if self.config.kv_source_layer is not None:
            return query, {}
        return query, {"latent": self._latents(source, source_positions)}

    def attend(
        self, query: tuple[Tensor, Tensor], held: Held, forward_pass: ForwardPass, *, causal: bool
    ) -> Tensor:
        """Attend; see `Attention.attend`. Returns [b, h, s, v]."""
        if held.is_cached and self._absorbs(query[0].shape[2], held.num_tokens):
            return self._absorbed(*query, held, forward_pass, causal)
        return self._expanded(*query, held, forward_pass, causal)

    def _queries(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.q_lora_rank is None:
            query = self.q_proj(x)
        else:
            latent = self.q_a_layernorm(self.q_a_proj(x))
            if config.latent_scale:
                latent = latent * config.scale_of_latent(config.q_lora_rank)
            query = self.q_b_proj(latent)
        query = split_heads(query, config.num_attention_heads)  # [b, h, s, d+r]
        nope, rope = query.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return nope, self._rotate(rope, positions)

    def _latents(self, source: Tensor, positions: Positions) -> Tensor:
        """Return what is cached of each token, [b, 1, t, c+r]: after the norm, after rotation."""
        config = self.config
        latent, rope = self.kv_a_proj_with_mqa(source).split(
            [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        rope = self._rotate(rope.unsqueeze(1), positions)  # [b, 1, t, r]
        latent = self.kv_a_layernorm(latent)
        if config.latent_scale:
            latent = latent * config.scale_of_latent(config.kv_lora_rank)
        return torch.cat((latent.unsqueeze(1), rope), dim=-1)

    def _absorbs(self, num_queries: int, num_tokens: int) -> bool:
        """Choose the way with fewer multiplications per head (docs/mla.md has the count)."""
        config = self.config
        s, t, c = num_queries, num_tokens, config.kv_lora_rank
        if config.decode_path == "blocks" and s == 1:
            return True
        if config.decode_path in ("absorbed", "expanded"):
            return config.decode_path == "absorbed"
        d, r, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        absorbed = s * c * (d + v) + s * t * 2 * (c + r)
        expanded = t * c * (d + v) + s * t * (d + r + v)
        return absorbed < expanded

    def _expanded(
        self,
        query_nope: Tensor,
        query_rope: Tensor,
        held: Held,
        forward_pass: ForwardPass,
        causal: bool,
    ) -> Tensor:
        config = self.config

        def read(start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            latent = held.read("latent", dtype, start, end)
            h, c, r = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
            compressed, key_rope = latent.split([c, r], dim=-1)
            expanded = self.kv_b_proj(compressed.squeeze(1)).unflatten(-1, (h, -1)).transpose(1, 2)
            key_nope, value = expanded.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
            return torch.cat((key_nope, key_rope.expand(-1, h, -1, -1)), dim=-1), value

        return self._attend(
            torch.cat((query_nope, query_rope), dim=-1),
            held,
            read,
            config.num_attention_heads,
            forward_pass,
            path="expanded",
            causal=causal,
            scale=self._scale,
        )

    def _absorbed(
        self,
        query_nope: Tensor,
        query_rope: Tensor,
        held: Held,
        forward_pass: ForwardPass,
        causal: bool,
    ) -> Tensor:
        config = self.config
        d, v, c = config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
        weight = self.kv_b_proj.weight
        if weight.dtype != query_nope.dtype:
            weight = weight.to(query_nope.dtype)  # under autocast
        key_up, value_up = weight.view(-1, d + v, c).split([d, v], dim=1)  # [h, d, c], [h, v, c]
        query = torch.cat((_by_head(query_nope, key_up), query_rope), dim=-1)  # [b, h, s, c+r]
        # Scores need c + r dimensions, values only c: reading the same c + r for both keeps the
        # cache in one piece, with no copy; the r surplus ones are cut off afterwards.
        attended = self._attend(
            query,
            held,
            entries_of(held, "latent", "latent"),
            1,
            forward_pass,
            path=config.decode_path,
            causal=causal,
            scale=self._scale,
            fold=True,
        )
        return _by_head(attended[..., :c], value_up.transpose(1, 2))  # [b, h, s, v]

    @property
    def _scale(self) -> float:
        return (self.config.qk_nope_head_dim + self.config.qk_rope_head_dim) ** -0.5


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [b, h, s, i] by each head's own weight [h, i, o]: [b, h, s, o].

    Batch and queries become the rows of one product per head: broadcasting over the batch would
    copy the weight for every sequence.
    """
    b, h, s, i = x.shape
    rows = x.transpose(0, 1).reshape(h, b * s, i)
    return torch.bmm(rows, weight).view(h, b, s, weight.shape[-1]).transpose(0, 1)
