"""One attention made of another's weights, as a start for a short training (*uptraining*).

MHA becomes GQA or MQA by averaging heads. MHA or GQA becomes MLA by two factorisations: what the
heads have in common in the fastest pairs of dimensions that RoPE rotates becomes the one rotated
key; keys without that, and values, become projections of one latent. Both are the best of their
rank for the inputs that the attention really gets, where a text for calibration is given.

Sources:
    Mean pooling, and the word uptraining: Ainslie et al. 2023 (arXiv 2305.13245), section 2.1.
    Joint low-rank keys and values, and RoPE on part of the dimensions: MHA2MLA (arXiv 2502.14837),
    section 3. One rotated key for all heads by a rotation across them that commutes with RoPE, and
    the balance of keys and values: TransMLA (arXiv 2502.07864), section 4.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from interop.errors import InteropError
from interop.layers import arrangement_problems
from interop.stock_config import refuse
from modeling.arrangement import layer_configs
from modeling.attention import GroupedQueryAttentionConfig, LatentAttentionConfig, attention_config
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from modeling.gpt import GPT

Weights = dict[str, Tensor]
Inputs = Callable[[Callable[[int, Tensor], None]], None]
"""Calls a function with the layer and [n, m] inputs of its attention, part by part, for all."""

_SAMPLES = 8192
"""Inputs to draw for a layer where no text is given."""
_FARTHEST = 2**20
"""Tokens over which a mean is taken at most; farther ones hardly count."""
_RIDGE = 1e-9
"""Share of the mean square that keeps a least-squares problem solvable."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is asked for.

    Args:
        attention: gqa, mqa or mla.
        num_key_value_heads: g of gqa; None: h / 4.
        kv_lora_rank: c of mla; None: 4 d, or the rank of keys and values if that is less.
        qk_rope_head_dim: r of mla; None: half of the dimensions that are rotated now.
    """

    attention: str
    num_key_value_heads: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None


def convert(
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    asked: Conversion,
    calibration: Tensor | None = None,
) -> tuple[GPTConfig, Weights]:
    """Return a model with another attention, and all else as it was.

    Args:
        config: Of a model with multi-head or grouped-query attention; its layers may have windows,
            sinks and RoPE of their own where it becomes gqa or mqa.
        weights: Its state dict.
        asked: Which attention.
        calibration: [n, s] tokens of text for mla; None takes what the norms alone say of the
            inputs of attention.

    Raises:
        InteropError: If it cannot be converted, or not so.
    """
    now = attention_config(config.attention)
    # A class that derives from it computes something else.
    if type(now) is not GroupedQueryAttentionConfig:
        raise InteropError(
            f"convert={asked.attention} takes a model with multi-head or grouped-query attention, "
            f"not attention={config.attention['name']}; choose such a run"
        )
    attentions = layer_configs(config)
    refuse(arrangement_problems(config, attentions))
    if asked.attention == "mla" and any(attention != now for attention in attentions):
        raise InteropError(
            f"convert=mla takes layers that are alike, not layers={config.layers.name}: no stock "
            "class has latent attention with windows, sinks or RoPE by layer; choose a run with "
            "layers=uniform, or convert=gqa"
        )
    try:
        if asked.attention == "mla":
            return _to_latent(config, now, weights, asked, calibration)
        return _to_grouped(config, now, weights, asked)
    except ModelConfigError as error:
        raise InteropError(f"convert={asked.attention}: {error}") from error


def _to_grouped(
    config: GPTConfig,
    now: GroupedQueryAttentionConfig,
    weights: Mapping[str, Tensor],
    asked: Conversion,
) -> tuple[GPTConfig, Weights]:
    """Average the key and value heads of each group."""
    h, g = now.num_attention_heads, now.num_key_value_heads
    fewer = 1 if asked.attention == "mqa" else asked.num_key_value_heads or max(h // 4, 1)
    if not 1 <= fewer < g or g % fewer:
        divisors = ", ".join(str(n) for n in range(1, g) if g % n == 0)
        raise InteropError(
            f"convert={asked.attention} cannot make {fewer} key-value heads of {g}; set "
            f"num_key_value_heads to one of {divisors or 'those of a model with more'}"
        )
    found = dict(weights)
    for layer in range(config.num_hidden_layers):
        for name in (f"layers.{layer}.self_attn.{part}_proj" for part in "kv"):
            for key in (f"{name}.weight", f"{name}.bias"):
                if key in found:
                    heads = found[key].double().unflatten(0, (fewer, g // fewer, -1))
                    found[key] = heads.mean(1).flatten(0, 1).to(_at_least_float32(found[key]))

    def with_fewer(fields: Mapping[str, Any]) -> dict[str, Any]:
        suffix = "" if fields["qk_rope_head_dim"] else "_no_rope"
        name = f"mqa{suffix}" if fewer == 1 else "gqa"
        return {**fields, "name": name, "num_key_value_heads": fewer, "decode_path": "auto"}

    layers = config.layers
    others = {
        name: with_fewer(fields)
        for name, fields in layers.attentions.items()
        if name in (layers.pattern or [])
    }
    return dataclasses.replace(
        config,
        attention=with_fewer(now.settings("gqa")),
        layers=dataclasses.replace(layers, attentions=others),
    ), found


def _to_latent(
    config: GPTConfig,
    now: GroupedQueryAttentionConfig,
    weights: Mapping[str, Tensor],
    asked: Conversion,
    calibration: Tensor | None,
) -> tuple[GPTConfig, Weights]:
    target = _latent_config(config, now, asked)
    model = GPT(config).eval()
    model.load_state_dict(dict(weights))
    inputs = _drawn(model) if calibration is None else _of_text(model, calibration)
    layers = range(config.num_hidden_layers)

    second_moments = [torch.zeros(now.hidden_size, now.hidden_size).double() for _ in layers]
    counts = [0 for _ in layers]

    def add_moments(layer: int, x: Tensor) -> None:
        second_moments[layer] += x.T @ x
        counts[layer] += len(x)

    inputs(add_moments)
    context = config.max_position_embeddings
    factors = [
        factorise(
            _projections(weights, layer, now),
            *(now, target, second_moments[layer] / counts[layer], context),
        )
        for layer in layers
    ]
    c = target.kv_lora_rank
    of_latents = [torch.zeros(c, c).double() for _ in layers]
    with_latents = [torch.zeros(now.hidden_size, c).double() for _ in layers]

    def add_latents(layer: int, x: Tensor) -> None:
        latent = _normalised(x @ factors[layer].down.T, target.latent_norm_eps)
        of_latents[layer] += latent.T @ latent
        with_latents[layer] += x.T @ latent

    inputs(add_latents)
    found = {
        key: value
        for key, value in weights.items()
        if ".self_attn." not in key or key.endswith("self_attn.o_proj.weight")
    }
    heads = (now.num_attention_heads, now.num_key_value_heads, now.head_dim)
    for layer, factor in enumerate(factors):
        dtype = _at_least_float32(weights[f"layers.{layer}.self_attn.k_proj.weight"])
        up = _least_squares(of_latents[layer], factor.targets @ with_latents[layer])
        for name, tensor in factor.weights(up, *heads).items():
            found[f"layers.{layer}.self_attn.{name}"] = tensor.to(dtype)
    name = "mla" if target.qk_rope_head_dim else "mla_no_rope"
    fields = target.settings(name) | {"decode_path": "auto"}
    return dataclasses.replace(config, attention=fields), found


def _latent_config(
    config: GPTConfig, now: GroupedQueryAttentionConfig, asked: Conversion
) -> LatentAttentionConfig:
    """Return the attention that is asked for.

    Raises:
        InteropError: If these weights cannot become it.
        ModelConfigError: If its widths are impossible.
    """
    for key in ("attention_bias", "use_qk_norm"):
        if getattr(now, key):
            raise InteropError(
                f"convert=mla cannot express model.attention.{key}=true, since latent attention "
                "has none for queries, keys and values; train a model without"
            )
    rotated, most = now.qk_rope_head_dim, now.num_key_value_heads * (now.head_dim + now.v_head_dim)
    r = 2 * (rotated // 4) if asked.qk_rope_head_dim is None else asked.qk_rope_head_dim
    if r > rotated or (r == 0 and rotated > 0):
        raise InteropError(
            f"qk_rope_head_dim ({r}) must be from {2 if rotated else 0} to {rotated}, which is "
            "what RoPE rotates of a head of this model"
        )
    rank = min(most, now.hidden_size)
    c = asked.kv_lora_rank or min(4 * now.head_dim, rank)
    if c > rank:
        raise InteropError(
            f"kv_lora_rank ({c}) must not exceed {rank}, the rank of this model's keys and values"
        )
    return LatentAttentionConfig(
        hidden_size=now.hidden_size,
        num_attention_heads=now.num_attention_heads,
        kv_lora_rank=c,
        qk_rope_head_dim=r,
        qk_nope_head_dim=now.head_dim,
        v_head_dim=now.v_head_dim,
        # The r / 2 fastest of the frequencies theta ** (-2 j / rotated) are these.
        rope_theta=now.rope_theta ** (r / rotated) if r else now.rope_theta,
        attention_dropout=now.attention_dropout,
    )


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    """Return what a mean or a factor of weights is kept in: who writes them rounds them once."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _of_text(model: GPT, tokens: Tensor, rows: int = 8) -> Inputs:
    """Return the inputs of each attention while the model reads [n, s] tokens."""

    @torch.no_grad()
    def run(observe: Callable[[int, Tensor], None]) -> None:
        def hook(layer: int) -> Callable[..., None]:
            return lambda module, arguments: observe(layer, arguments[0].flatten(0, 1).double())

        hooks = [
            cast(Any, block).self_attn.register_forward_pre_hook(hook(layer))
            for layer, block in enumerate(model.layers)
        ]
        try:
            for start in range(0, len(tokens), rows):
                model.hidden_states(tokens[start : start + rows])
        finally:
            for handle in hooks:
                handle.remove()

    return run


def _drawn(model: GPT) -> Inputs:
    """Return inputs that only the norm before each attention tells of: no direction is likelier.

    What a norm gets is drawn from a normal distribution, with the same random numbers each time.
    """

    @torch.no_grad()
    def run(observe: Callable[[int, Tensor], None]) -> None:
        generator = torch.Generator().manual_seed(0)
        for layer, block in enumerate(model.layers):
            x = torch.randn(_SAMPLES, model.config.hidden_size, generator=generator)
            observe(layer, cast(Any, block).input_layernorm(x).double())

    return run


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


def _projections(
    weights: Mapping[str, Tensor], layer: int, now: GroupedQueryAttentionConfig
) -> Projections:
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
        """Return what a `LatentAttention` has besides o_proj.

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
        projections: Of the attention that there is.
        now: Its configuration.
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


def _normalised(latent: Tensor, eps: float) -> Tensor:
    return latent * (latent.square().mean(-1, keepdim=True) + eps).rsqrt()


def _least_squares(of_latents: Tensor, with_latents: Tensor) -> Tensor:
    """Return B that minimises E|t - B a|^2, from E[a a^T] and E[t a^T] up to a common factor."""
    ridge = _RIDGE * of_latents.diagonal().mean() * torch.eye(len(of_latents)).double()
    return torch.linalg.solve(of_latents + ridge, with_latents.T).T
