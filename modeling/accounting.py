"""Closed forms: parameters, cache bytes and FLOPs of a configuration, without building it.

Tests compare each with what the built model really has.
"""

import dataclasses

import torch

from modeling.attention import attention_config
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from modeling.kv_cache import bytes_per_token


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
        attention=layers * attention_config(config.attention).num_parameters(),
        mlp=layers * _mlp_parameters(config, config.intermediate_size),
        norms=(2 * layers + 1) * norm,
    )


def _mlp_parameters(config: GPTConfig, intermediate_size: int) -> int:
    into = 2 if config.mlp == "swiglu" else 1
    weights = (into + 1) * config.hidden_size * intermediate_size
    biases = into * intermediate_size + config.hidden_size if config.mlp_bias else 0
    return weights + biases


def kv_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes that a token leaves in the caches of all layers, which store `dtype`."""
    entries = attention_config(config.attention).kv_cache_entries()
    return config.num_hidden_layers * bytes_per_token(entries, dtype)


def mha_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the same for plain multi-head attention of this width: 2 m elements per layer."""
    return config.num_hidden_layers * 2 * config.hidden_size * dtype.itemsize


def training_flops_per_token(config: GPTConfig, context_length: int) -> float:
    """Return forward and backward FLOPs per token, attention included.

    A multiply-add is two; the backward pass costs twice the forward pass; causal attention sees
    (context_length + 1) / 2 keys on average.

    Source:
        Kaplan et al. 2020 (arXiv 2001.08361), table 1, with PaLM's attention term (arXiv
        2204.02311, appendix B), halved for causality.
    """
    assert config.vocab_size is not None
    mlp = 3 if config.mlp == "swiglu" else 2
    layer = attention_config(config.attention).flops_per_token(context_length)
    layer += 2 * mlp * config.hidden_size * config.intermediate_size
    output = 2 * config.hidden_size * config.vocab_size
    return 3 * (config.num_hidden_layers * layer + output)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a model costs.

    Args:
        parameters: By role.
        kv_cache_bytes_per_token: Over all layers, in the dtype of the weights (float32).
        cache_ratio_to_mha: That as a fraction of plain multi-head attention's of this width.
        training_flops_per_token: Forward and backward, at the model's context length.
    """

    parameters: ParameterCount
    kv_cache_bytes_per_token: int
    cache_ratio_to_mha: float
    training_flops_per_token: float


def budget_of(config: GPTConfig) -> Budget:
    """Work out what a model costs; `vocab_size` must be set."""
    cache = kv_cache_bytes_per_token(config)
    return Budget(
        parameters=num_parameters(config),
        kv_cache_bytes_per_token=cache,
        cache_ratio_to_mha=cache / mha_cache_bytes_per_token(config),
        training_flops_per_token=training_flops_per_token(config, config.max_position_embeddings),
    )


def mha_yardstick(config: GPTConfig) -> GPTConfig:
    """Return the model that others are matched to: the same with multi-head attention.

    Its heads are m / h wide and it has RoPE, so no learned positions. Only what it costs is meant:
    RoPE, which has no parameters, is left out of its fields.

    Args:
        config: Any attention; `intermediate_size` as asked for, before any matching.
    """
    m, h = config.hidden_size, config.num_attention_heads
    return dataclasses.replace(
        config,
        position_embedding="none",
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
    0.5 %. `vocab_size` must be set, and `intermediate_size` be MHA's (see `mha_yardstick`): the
    result is not to be matched again.

    Raises:
        ModelConfigError: If no MLP brings the model that near.
    """
    wanted = num_parameters(mha_yardstick(config)).total
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


def match_cache(config: GPTConfig, ratio: float) -> GPTConfig:
    """Return the configuration with the attention whose cache is `ratio` of MHA's of this width.

    The attention's own free width is set (`AttentionConfig.with_kv_cache_elements`), and nothing
    else; `match_to_mha` can make the parameters equal afterwards.

    Args:
        config: Any attention; `vocab_size` need not be set.
        ratio: In (0, 1]; of the 2 m elements that MHA caches per token and layer.

    Raises:
        ModelConfigError: If the attention has no such width within 0.5 %.
    """
    fields, mha = config.attention, 2 * config.hidden_size
    now = attention_config(fields)
    found = now.with_kv_cache_elements(round(ratio * mha))
    if found.problems_as(fields["name"]):
        found = now  # what a name promises is not changed
    elements = found.kv_cache_elements_per_token()
    if not _is_near(elements, ratio * mha):
        own = f"match_cache_ratio={elements / mha:.6g}, " if elements <= mha else ""
        raise ModelConfigError(
            f"match=cache with match_cache_ratio={ratio:g} asks for {ratio * mha:g} cached "
            f"elements per token and layer, and the nearest of attention={fields['name']} is "
            f"{elements}; set {own}an attention that can (attention=gqa or mla), or match=params"
        )
    changed = {key: getattr(found, key) for key in fields.keys() - {"name"}}
    return dataclasses.replace(config, attention=fields | changed)


def _is_near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 0.005 * wanted
