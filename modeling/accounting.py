"""Closed forms: parameters, cache bytes and FLOPs of a configuration, without building it.

Tests compare each with what the built model really has.
"""

import dataclasses

import torch

from modeling.arrangement import layer_configs
from modeling.attention import attention_config
from modeling.config import GPTConfig, LayersConfig
from modeling.errors import ModelConfigError


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters by role."""

    embeddings: int
    attention: int
    mlp: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters, each once (a tied output projection is the input embedding)."""
        return self.embeddings + self.attention + self.mlp + self.norms


def num_parameters(config: GPTConfig) -> ParameterCount:
    """Count the parameters of a model; `vocab_size` must be set."""
    assert config.vocab_size is not None
    m, layers = config.hidden_size, config.num_hidden_layers
    embeddings = config.vocab_size * m * (1 if config.tie_word_embeddings else 2)
    if config.position_embedding == "learned":
        embeddings += config.max_position_embeddings * m
    norm = m if config.norm == "rms_norm" else 2 * m
    return ParameterCount(
        embeddings=embeddings,
        attention=sum(attention.num_parameters() for attention in layer_configs(config)),
        mlp=layers * _mlp_parameters(config, config.intermediate_size),
        norms=(2 * layers + 1) * norm,
    )


def _mlp_parameters(config: GPTConfig, intermediate_size: int) -> int:
    into = 2 if config.mlp == "swiglu" else 1
    weights = (into + 1) * config.hidden_size * intermediate_size
    biases = into * intermediate_size + config.hidden_size if config.mlp_bias else 0
    return weights + biases


def kv_cache_bytes(config: GPTConfig, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes that a sequence of `num_tokens` tokens takes in the caches of all layers.

    Args:
        config: Of the model.
        num_tokens: Tokens of the sequence.
        dtype: Of the stored elements.
    """
    return sum(layer.state().bytes(num_tokens, dtype) for layer in layer_configs(config))


def kv_cache_bytes_read(
    config: GPTConfig, num_tokens: int, dtype: torch.dtype = torch.float32
) -> int:
    """Return the bytes of a sequence's caches that a decoding step reads, over all layers.

    Layers that share a cache read it once each. Arguments as in `kv_cache_bytes`.
    """
    return sum(layer.state().bytes_read(num_tokens, dtype) for layer in layer_configs(config))


@dataclasses.dataclass(frozen=True)
class CacheCurve:
    """A sequence's cache as a function of its tokens T.

    It takes fixed + slope x T bytes until the first window is full, and from the plateau on, where
    all windows are, plateau_bytes + slope_beyond x (T - plateau).

    Args:
        fixed: Bytes that do not depend on T.
        slope: Bytes that each of the first tokens adds.
        plateau: Tokens from which on no window grows; 0 where no layer has one.
        slope_beyond: Bytes that each token adds from there on.
    """

    fixed: int
    slope: int
    plateau: int
    slope_beyond: int

    def bytes(self, num_tokens: int) -> int:
        """Return the bytes of a sequence of `num_tokens` tokens."""
        below = min(num_tokens, self.plateau)
        return self.fixed + self.slope * below + self.slope_beyond * (num_tokens - below)


def cache_curve(config: GPTConfig, dtype: torch.dtype = torch.float32) -> CacheCurve:
    """Return the closed form of a sequence's cache, over all layers; `dtype` is what they store."""
    states = [layer.state() for layer in layer_configs(config)]
    plateau = max(state.window or 0 for state in states)
    fixed, first, full, beyond = (
        sum(state.bytes(tokens, dtype) for state in states)
        for tokens in (0, 1, plateau, plateau + 1)
    )
    return CacheCurve(fixed=fixed, slope=first - fixed, plateau=plateau, slope_beyond=beyond - full)


def kv_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes that a token adds to the caches of all layers once every window is full."""
    return cache_curve(config, dtype).slope_beyond


def mha_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the same for plain multi-head attention of this width: 2 m elements per layer."""
    return config.num_hidden_layers * 2 * config.hidden_size * dtype.itemsize


def training_flops_per_token(config: GPTConfig, context_length: int) -> float:
    """Return forward and backward FLOPs per token, attention included.

    A multiply-add is two; the backward pass costs twice the forward pass; causal attention sees
    (context_length + 1) / 2 keys on average, and less through a window.

    Source:
        Kaplan et al. 2020 (arXiv 2001.08361), table 1, with PaLM's attention term (arXiv
        2204.02311, appendix B), halved for causality.
    """
    assert config.vocab_size is not None
    mlp = 3 if config.mlp == "swiglu" else 2
    per_layer = 2 * mlp * config.hidden_size * config.intermediate_size
    output = 2 * config.hidden_size * config.vocab_size
    layers = sum(
        attention.flops_per_token(context_length) + per_layer for attention in layer_configs(config)
    )
    return 3 * (layers + output)


@dataclasses.dataclass(frozen=True)
class ModelBudget:
    """What a model costs.

    Args:
        parameters: By role.
        kv_cache_bytes_per_token: What a token adds once every window is full, over all layers, in
            the dtype of the weights (float32).
        kv_cache_bytes_at_context: Of a sequence of the context it was worked out for.
        cache_ratio_to_mha: That as a fraction of plain multi-head attention's of this width.
        training_flops_per_token: Forward and backward, at the model's context length.
    """

    parameters: ParameterCount
    kv_cache_bytes_per_token: int
    kv_cache_bytes_at_context: int
    cache_ratio_to_mha: float
    training_flops_per_token: float


def budget_of(config: GPTConfig, cache_context: int | None = None) -> ModelBudget:
    """Work out what a model costs.

    Args:
        config: `vocab_size` must be set.
        cache_context: Tokens of the sequence whose cache is stated; the model's own if None.
    """
    context = cache_context or config.max_position_embeddings
    cache = kv_cache_bytes(config, context)
    return ModelBudget(
        parameters=num_parameters(config),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(config),
        kv_cache_bytes_at_context=cache,
        cache_ratio_to_mha=cache / (context * mha_cache_bytes_per_token(config)),
        training_flops_per_token=training_flops_per_token(config, config.max_position_embeddings),
    )


def mha_baseline(config: GPTConfig) -> GPTConfig:
    """Return the model that others are matched to: the same with multi-head attention.

    Its heads are m / h wide and it has RoPE, so no learned positions. Only what it costs is meant:
    RoPE, which has no parameters, is left out of its fields. All its layers are alike.

    Args:
        config: Any attention; `intermediate_size` as asked for, before any matching.
    """
    m, h = config.hidden_size, config.num_attention_heads
    return dataclasses.replace(
        config,
        position_embedding="none",
        allow_nope=True,
        layers=LayersConfig(),
        attention={
            "name": "mha",
            "hidden_size": m,
            "num_attention_heads": h,
            "num_key_value_heads": h,
            "head_dim": m // h,
            "v_head_dim": m // h,
            "qk_rope_head_dim": 0,
            "attention_bias": config.attention.get("attention_bias", False),
        },
    )


def match_to_mha(config: GPTConfig) -> GPTConfig:
    """Return the configuration with the MLP width that gives it MHA's number of parameters.

    The width is rounded to a multiple of 8, or to a whole number where that misses by more than
    0.5 %. `vocab_size` must be set, and `intermediate_size` be MHA's (see `mha_baseline`): the
    result is not to be matched again.

    Raises:
        ModelConfigError: If no MLP brings the model that near.
    """
    wanted = num_parameters(mha_baseline(config)).total
    surplus = wanted - num_parameters(config).total
    per_unit = _mlp_parameters(config, 1) - _mlp_parameters(config, 0)
    width = config.intermediate_size + surplus / (per_unit * config.num_hidden_layers)
    for rounded in (8 * round(width / 8), round(width)):
        matched = dataclasses.replace(config, intermediate_size=rounded)
        if rounded > 0 and _is_near(num_parameters(matched).total, wanted):
            return matched
    raise ModelConfigError(
        f"no MLP gives the model MHA's {wanted:,} parameters within 0.5 % (intermediate_size "
        f"would be {width:.1f}); set match=none, or a larger model.intermediate_size"
    )


def match_cache(config: GPTConfig, ratio: float, context: int | None = None) -> GPTConfig:
    """Return the configuration with the attention whose cache is `ratio` of MHA's of this width.

    The attention's own free width is set (`AttentionConfig.with_kv_cache_elements`), and nothing
    else; `match_to_mha` can make the parameters equal afterwards.

    Args:
        config: Any attention; `vocab_size` need not be set.
        ratio: In (0, 1]; of the 2 m elements that MHA caches per token and layer.
        context: Tokens at which the caches are compared; the model's context if not given. It
            matters where layers have windows.

    Raises:
        ModelConfigError: If the attention has no such width within 0.5 %.
    """
    context = context or config.max_position_embeddings
    fields, mha = config.attention, context * mha_cache_bytes_per_token(config)
    now = attention_config(fields)

    def with_elements(elements: int) -> GPTConfig | None:
        """Return the model with so many a token, or nearly; None if its name promises others."""
        found = now.with_kv_cache_elements(max(1, elements))
        if found.problems_as(fields["name"]):
            return None
        changed = {key: getattr(found, key) for key in fields.keys() - {"name"}}
        return dataclasses.replace(config, attention=fields | changed)

    wanted = now.state().elements_per_token
    # Linear in the elements, but that layers may leave some of them out (RoPE's): a few steps do.
    for _ in range(6):
        if (nearest := with_elements(wanted)) is None:
            break
        elements = attention_config(nearest.attention).state().elements_per_token
        wanted = round(elements * ratio * mha / kv_cache_bytes(nearest, context))
    candidates = (with_elements(tried) for tried in range(wanted - 2, wanted + 3))
    matched = min(
        [found for found in candidates if found is not None] or [config],
        key=lambda each: abs(kv_cache_bytes(each, context) - ratio * mha),
    )
    cache = kv_cache_bytes(matched, context)
    if not _is_near(cache, ratio * mha):
        own = f"match_cache_ratio={cache / mha:.6g}, " if cache <= mha else ""
        able = " or ".join(name for name in ("gqa", "mla") if name != fields["name"])
        per_token = f"{cache / config.num_hidden_layers / context / 4:g}"
        raise ModelConfigError(
            f"match=cache with match_cache_ratio={ratio:g} asks for "
            f"{ratio * 2 * config.hidden_size:g} cached elements per token and layer at "
            f"{context} tokens, and the nearest of attention={fields['name']} is {per_token}; set "
            f"{own}an attention that can (attention={able}), or match=params"
        )
    return matched


def _is_near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 0.005 * wanted
