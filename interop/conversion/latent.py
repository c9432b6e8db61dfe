"""The two factorisations that make latent attention of grouped-query attention's weights."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modeling.attention import GroupedQueryAttentionConfig, LatentAttentionConfig

Weights = dict[str, Tensor]

_RIDGE = 1e-9
"""Share of the mean square that keeps a least-squares problem solvable."""
_FARTHEST = 2**20
"""Tokens over which a mean is taken at most; farther ones hardly count."""


@dataclasses.dataclass(frozen=True)
class Projections:
    """The weights of one grouped-query attention by head, float64.

    Args:
        query: [h, d, m].
        key: [g, d, m].
        value: [g, v, m].
        output: [m, h, v].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


def projections(
    weights: Mapping[str, Tensor], layer: int, now: GroupedQueryAttentionConfig
) -> Projections:
    """Return a layer's projections by head, float64."""
    query, key, value, output = (
        weights[f"layers.{layer}.self_attn.{name}_proj.weight"].double() for name in "qkvo"
    )
    h, g = now.num_attention_heads, now.num_key_value_heads
    return Projections(
        query.unflatten(0, (h, -1)),
        key.unflatten(0, (g, -1)),
        value.unflatten(0, (g, -1)),
        output.unflatten(1, (h, -1)),
    )


@dataclasses.dataclass(frozen=True)
class Factors:
    """What latent attention has in place of the projections of one layer, before its norm.

    Args:
        down: [c, m], from an input to the latent, whose mean square is 1 on average.
        up: [g (d + v), c], from a latent that no norm has changed to nearly `targets`.
        targets: [g (d + v), m], from an input to keys without what is rotated, and values, each
            scaled by how much it counts.
        scales: [g (d + v)], that scale.
        rotated_key: [r, m].
        query: [h, d + r, m].
    """

    down: Tensor
    up: Tensor
    targets: Tensor
    scales: Tensor
    rotated_key: Tensor
    query: Tensor

    def weights(self, up: Tensor, h: int, g: int, d: int) -> Weights:
        """Return the weights of a `LatentAttention` other than o_proj's.

        Args:
            up: [g (d + v), c], as `self.up`, from the latents that it really gets.
            h: Query heads.
            g: Key-value heads that there were.
            d: Width of a key.
        """
        unscaled = up / self.scales[:, None]
        key, value = (
            part.unflatten(0, (g, -1)) for part in unscaled.split([g * d, len(up) - g * d])
        )
        by_head = torch.cat((key, value), dim=1).repeat_interleave(h // g, dim=0)
        return {
            "q_proj.weight": self.query.flatten(0, 1),
            "kv_a_proj_with_mqa.weight": torch.cat((self.down, self.rotated_key)),
            "kv_a_layernorm.weight": torch.ones(len(self.down)),
            "kv_b_proj.weight": by_head.flatten(0, 1),
        }


def factorise(
    projections: Projections,
    now: GroupedQueryAttentionConfig,
    target: LatentAttentionConfig,
    second_moment: Tensor,
    context: int,
) -> Factors:
    """Find the rotated key, the latent, and the queries for both.

    Args:
        projections: The weights of the present attention.
        now: The configuration of that attention.
        target: The latent attention's.
        second_moment: [m, m], E[x x^T] of its inputs x.
        context: Tokens, over which the mean of what RoPE does is taken where it is left out.
    """
    h, g, d = now.num_attention_heads, now.num_key_value_heads, now.head_dim
    r, rotated = target.qk_rope_head_dim, now.qk_rope_head_dim
    # Of each dimension of a key, how much it counts in a score: the mean square of the queries.
    energy = _mean_square(projections.query, second_moment).unflatten(0, (g, h // g)).mean(1)
    query_pairs, key_pairs = (
        _as_pairs(heads, rotated) for heads in (projections.query, projections.key)
    )
    pair_energy = energy[:, d - rotated :].unflatten(1, (2, -1)).sum(1)  # [g, rotated / 2]
    shared = []  # [m] each, complex
    queries = []  # [h, m] each
    rest = []  # [g, m] each
    for pair in range(rotated // 2):
        keys = key_pairs[:, pair]
        frequency = now.rope_theta ** (-2 * pair / rotated)
        if pair < r // 2:
            one, shares = _in_common(keys, pair_energy[:, pair], second_moment)
            keys = keys - shares[:, None] * one
            by_head = shares.conj().repeat_interleave(h // g)[:, None] * query_pairs[:, pair]
            one, by_head = _balanced(one, by_head, second_moment)
            shared.append(one)
            queries.append(by_head)
        rest.append(_mean_cosine(frequency, context) * keys)
    keys = torch.cat((projections.key[:, : d - rotated], _as_dimensions(rest, g, now)), dim=1)
    query = torch.cat((projections.query, _as_dimensions(queries, h, now)), dim=1)
    # Scores are divided by the square root of d + r, no longer of d.
    query = query * math.sqrt((d + r) / d)

    value_energy = projections.output.square().sum(0).unflatten(0, (g, h // g)).mean(1)
    scales = [
        _shares(projections.key, energy, second_moment),
        _shares(projections.value, value_energy, second_moment),
    ]
    targets = [
        scale[..., None] * heads
        for scale, heads in zip(scales, (keys, projections.value), strict=True)
    ]
    scale = torch.cat([some.flatten() for some in scales])
    both = torch.cat([some.flatten(0, 1) for some in targets])
    components = torch.linalg.eigh(both @ second_moment @ both.T)
    c = target.kv_lora_rank
    directions, mean_squares = components.eigenvectors[:, -c:], components.eigenvalues[-c:]
    size = mean_squares.mean().sqrt()
    return Factors(
        down=directions.T @ both / size,
        up=directions * size,
        targets=both,
        scales=scale,
        rotated_key=_as_dimensions([one[None] for one in shared], 1, now)[0],
        query=query,
    )


def _mean_square(rows: Tensor, second_moment: Tensor) -> Tensor:
    """Return E[(row x)^2] of each of [..., m] rows; of complex ones its real and imaginary sum."""
    moments = second_moment.to(rows.dtype)
    return ((rows @ moments) * rows.conj()).sum(-1).real


def _shares(heads: Tensor, counts: Tensor, second_moment: Tensor) -> Tensor:
    """Return [g, d], what [g, d, m] rows are to be scaled by for their squares to count so.

    All of them together then have the mean square 1, so that keys count as much as values do.

    Args:
        heads: The rows.
        counts: [g, d], how much the square of each counts.
        second_moment: [m, m] of the inputs.
    """
    scale = _floored(counts).sqrt()
    total = (scale.square() * _mean_square(heads, second_moment)).sum().sqrt()
    return scale / total if total > 0 else scale


def _floored(counts: Tensor) -> Tensor:
    """Return what may be divided by; where nothing counts, all count alike."""
    mean = counts.mean()
    return counts.clamp_min(_RIDGE * mean) if mean > 0 else torch.ones_like(counts)


def _as_pairs(heads: Tensor, rotated: int) -> Tensor:
    """Return the last `rotated` of [heads, d, m] rows as complex ones, [heads, rotated / 2, m]."""
    real, imaginary = heads[:, heads.shape[1] - rotated :].unflatten(1, (2, -1)).unbind(1)
    return torch.complex(real, imaginary)


def _as_dimensions(pairs: list[Tensor], heads: int, now: GroupedQueryAttentionConfig) -> Tensor:
    """Lay complex [heads, m] rows out as RoPE has them, real parts first: [heads, 2 pairs, m]."""
    if not pairs:
        return torch.zeros(heads, 0, now.hidden_size).double()
    stacked = torch.stack(pairs, dim=1)
    return torch.cat((stacked.real, stacked.imag), dim=1)


def _in_common(keys: Tensor, counts: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Find the one complex key that stands best for those of g heads.

    To multiply a pair of dimensions by a complex number commutes with rotating it.

    Args:
        keys: [g, m], one complex row per head.
        counts: [g], how much each counts.
        second_moment: [m, m] of the inputs.

    Returns:
        A row [m] and a share of each head [g], so that shares x row is nearly the keys.
    """
    scale = _floored(counts).sqrt()
    scaled = scale[:, None] * keys
    covariance = scaled @ second_moment.to(keys.dtype) @ scaled.conj().T
    principal = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    return principal.conj() @ scaled, principal / scale


def _balanced(key: Tensor, queries: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Scale a key [m] and its queries [h, m] to one mean square, for the optimizer that follows."""
    theirs, its = _mean_square(queries, second_moment).mean(), _mean_square(key, second_moment)
    if not theirs > 0 or not its > 0:
        return key, queries
    factor = (theirs / its).sqrt().sqrt()
    return key * factor, queries / factor


def _mean_cosine(frequency: float, context: int) -> float:
    """Return what rotating by a frequency does to a score on average.

    It is the best that a factor can do in the rotation's place, if attention to a token falls with
    one over its distance.
    """
    distance = torch.arange(min(context, _FARTHEST)).double()
    share = 1 / (1 + distance)
    return float((share * (distance * frequency).cos()).sum() / share.sum())


def normalised(latent: Tensor, eps: float) -> Tensor:
    """Divide latents [..., c] by the root of their mean square, as RMSNorm does."""
    return latent * (latent.square().mean(-1, keepdim=True) + eps).rsqrt()


def least_squares(of_latents: Tensor, with_latents: Tensor) -> Tensor:
    """Return B that minimises E|t - B a|^2, from E[a a^T] and E[t a^T] up to a common factor."""
    ridge = _RIDGE * of_latents.diagonal().mean() * torch.eye(len(of_latents)).double()
    return torch.linalg.solve(of_latents + ridge, with_latents.T).T
