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
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from interop.conversion.latent import Weights, factorise, least_squares, normalised, projections
from interop.errors import InteropError
from interop.families.config_json import refuse
from interop.families.layers import arrangement_problems
from modeling.arrangement import layer_configs
from modeling.attention import GroupedQueryAttentionConfig, LatentAttentionConfig, attention_config
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from modeling.gpt import GPT

Inputs = Callable[[Callable[[int, Tensor], None]], None]
"""Calls a function with the layer and [n, m] inputs of its attention, part by part, for all."""

_SAMPLES = 8192
"""Inputs to draw for a layer where no text is given."""


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
        config: A model with multi-head or grouped-query attention; its layers may have windows,
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
            f"not attention={config.attention['name']}; choose a run with one of those"
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
            projections(weights, layer, now),
            *(now, target, second_moments[layer] / counts[layer], context),
        )
        for layer in layers
    ]
    c = target.kv_lora_rank
    of_latents = [torch.zeros(c, c).double() for _ in layers]
    with_latents = [torch.zeros(now.hidden_size, c).double() for _ in layers]

    def add_latents(layer: int, x: Tensor) -> None:
        latent = normalised(x @ factors[layer].down.T, target.latent_norm_eps)
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
        up = least_squares(of_latents[layer], factor.targets @ with_latents[layer])
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
    """Return inputs of which only the norm before them is known: no direction is likelier.

    What a norm gets is drawn from a normal distribution, with the same random numbers each time.
    """

    @torch.no_grad()
    def run(observe: Callable[[int, Tensor], None]) -> None:
        generator = torch.Generator().manual_seed(0)
        for layer, block in enumerate(model.layers):
            x = torch.randn(_SAMPLES, model.config.hidden_size, generator=generator)
            observe(layer, cast(Any, block).input_layernorm(x).double())

    return run
