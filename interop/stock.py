"""From kvlab's modules to the classes of transformers that compute the same, and back.

A family renames, permutes, joins or copies weights; none is changed, so that the way there and back
gives the same bits (but for latent attention without positions, see `interop.families.deepseek`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interop.errors import InteropError
from interop.families import Family, deepseek, deepseek_v4, gpt2, llama
from interop.families.config_json import as_transformers_reads, refuse, require
from interop.families.layers import arrangement_problems, stored_sinks, with_values
from modeling.arrangement import layer_configs
from modeling.config import GPTConfig
from modeling.errors import ModelConfigError
from modeling.gpt import GPT
from settings.dtypes import DTYPE_NAMES

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
"""What weights can be written in."""
_READABLE = (*DTYPES.values(), torch.float64)
_FAMILIES: dict[str, tuple[Family, str]] = {
    "llama": (llama, "LlamaForCausalLM"),
    "mistral": (llama, "MistralForCausalLM"),
    "ministral": (llama, "MinistralForCausalLM"),
    "qwen3": (llama, "Qwen3ForCausalLM"),
    "smollm3": (llama, "SmolLM3ForCausalLM"),
    "granite_swa": (llama, "GraniteSWAForCausalLM"),
    "deepseek_v2": (deepseek, "DeepseekV2ForCausalLM"),
    "deepseek_v3": (deepseek, "DeepseekV3ForCausalLM"),
    "deepseek_v4": (deepseek_v4, "DeepseekV4ForCausalLM"),
    "gpt2": (gpt2, "GPT2LMHeadModel"),
    "gpt_bigcode": (gpt2, "GPTBigCodeForCausalLM"),
}
"""By model_type: who reads and writes it, and the class."""
_LATENT = frozenset({"mla", "mla_no_rope"})
_GROUPED = frozenset({"mha", "mqa", "gqa", "mha_no_rope", "mqa_no_rope", "gqa_tied", "mqa_tied"})


@dataclass(frozen=True)
class Stock:
    """A model as transformers holds it.

    Args:
        config: The keys of config.json, with "architectures" and "model_type".
        weights: The state dict; a tied output projection is not in it.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def to_stock(config: GPTConfig, weights: Mapping[str, Tensor]) -> Stock:
    """Express a model by a stock class of transformers.

    `intra_document_mask` is left out: one document is computed the same with and without it.

    Args:
        config: The model; `vocab_size` must be set.
        weights: Its state dict, in any of `DTYPES` or float64, which is kept.

    Raises:
        InteropError: If no stock class expresses it; naming each part and what can be done.
        ModelConfigError: If there is no such model.
    """
    attentions = layer_configs(config)
    if config.vocab_size is None:
        raise InteropError("model.vocab_size is not set; give the tokenizer's")
    _require_weights(_shapes(_without_weights(config)), weights, "the model")
    # A class of somebody's own that derives from one of these computes something else.
    attention_of = {"own": config.attention, **config.layers.attentions}
    pattern = (config.layers.pattern or ["own"])[: config.num_hidden_layers]
    names = {attention_of[name]["name"] for name in pattern}
    family: Family = llama
    if names <= _LATENT:
        family = deepseek
    elif names == {"shared_kv"}:
        family = deepseek_v4
    elif not names <= _GROUPED:
        refuse(arrangement_problems(config, attentions))  # where some are others
        name = sorted(names - _GROUPED - _LATENT - {"shared_kv"})[0]
        raise InteropError(
            f"no stock class of transformers computes model.attention.name={name}; train mha, mqa, "
            "gqa, gqa_tied, mla or shared_kv to export it"
        )
    elif config.position_embedding == "learned" and config.norm == "layer_norm":
        family = gpt2
    refuse([*arrangement_problems(config, attentions), *family.problems(config, attentions)])
    keys, theirs = family.write(config, attentions, with_values(weights))
    return Stock(keys | {"architectures": [_FAMILIES[keys["model_type"]][1]]}, theirs)


def from_stock(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Load a model of transformers into kvlab's modules.

    Args:
        config: The keys of config.json, in the spelling of transformers 5 or older.
        weights: The state dict, with or without a tied output projection.

    Returns:
        The model and its state dict in the dtype it came in. `name` is the model's type, and
        `end_of_document_id` the token that ends its texts, if that is one.

    Raises:
        InteropError: If kvlab has no module that computes the same, naming the key, or if weights
            are missing, surplus or of another shape, naming them.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise InteropError(
            f"config.json: model_type ({str(model_type)[:60]!r}) is none of those that kvlab has "
            f"modules for: {', '.join(_FAMILIES)}"
        )
    family, read = _FAMILIES[model_type][0], as_transformers_reads(config)
    if min(read.num_attention_heads, read.hidden_size) < 1:
        raise InteropError("config.json: num_attention_heads and hidden_size must be at least 1")
    require(read, "is_causal", True, "kvlab's model sees no later token")
    try:
        ours = family.read_config(read, weights)
        layer_configs(ours)
    except ModelConfigError as error:
        raise InteropError(f"config.json describes no model of kvlab's: {error}") from error
    expected = stored_sinks(read) | _expected_shapes(ours)
    theirs = _without_leftovers(weights, ours.tie_word_embeddings)
    _require_weights(expected, theirs, "the model that config.json describes")
    return ours, family.read_weights(read, ours, theirs)


def _without_weights(config: GPTConfig) -> dict[str, Tensor]:
    """Return a model's state dict with shapes alone."""
    with torch.device("meta"):
        return GPT(config).state_dict()


def _expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a model's weights have in its stock class.

    Raises:
        InteropError: If torch knows no tensor as large.
    """
    try:
        # On this device nothing that a family makes takes memory, either.
        with torch.device("meta"):
            return _shapes(to_stock(config, _without_weights(config)).weights)
    except (OverflowError, RuntimeError, TypeError) as error:  # for sizes of more than 64 bits
        reason = " ".join(str(error).split())[:100]
        raise InteropError(f"config.json describes a model that is too large ({reason})") from error


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _without_leftovers(weights: Mapping[str, Tensor], is_tied: bool) -> dict[str, Tensor]:
    """Leave out what older versions also stored: RoPE's frequencies, a tied projection.

    Raises:
        InteropError: If that projection is not the embedding.
    """
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not name.endswith(".rotary_emb.inv_freq")
    }
    if is_tied and (output := kept.pop("lm_head.weight", None)) is not None:
        names = ("model.embed_tokens.weight", "transformer.wte.weight")
        if not any(name in kept and torch.equal(kept[name], output) for name in names):
            raise InteropError(
                "lm_head.weight is not the embedding, but config.json says tie_word_embeddings; "
                "set it to false there"
            )
    return kept


def _require_weights(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], what: str
) -> None:
    """Refuse weights that are not those of a model.

    Raises:
        InteropError: Naming the first that is missing, surplus, of another shape or dtype.
    """
    found = _shapes(weights)
    for name in sorted({*expected, *found}):
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            is_there = "missing" if theirs is None else f"{list(theirs)}"
            wanted = "has none" if ours is None else f"needs {list(ours)}"
            raise InteropError(f"weights {name[:100]}: {is_there}, but {what} {wanted}")
        if weights[name].dtype not in _READABLE:
            raise InteropError(
                f"weights {name[:100]} are {weights[name].dtype}, which kvlab does not compute "
                "with; it reads float32, bfloat16, float16 and float64"
            )
