"""What the layouts of several families share: config.json, and names of weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interop.errors import InteropError
from modeling.attention import AttentionConfig, SoftmaxAttentionConfig
from modeling.config import MAX_LAYERS, GPTConfig

# The family, which is given by itself; a table that would replace the class's own; and the labels
# of classifiers, of which transformers makes a table with as many lines as the file says.
_NOT_PASSED_ON = ("model_type", "attribute_map", "num_labels", "id2label", "label2id")

_SIZES = (
    *("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    "first_k_dense_replace",
)
# These may be null: what others say then decides.
_OPTIONAL_SIZES = ("head_dim", "q_lora_rank", "n_inner")


def as_transformers_reads(config: Mapping[str, Any]) -> Any:
    """Return the configuration object that transformers makes of a config.json.

    It knows each class's defaults, and the older spellings. Nothing that a file names is imported.

    Args:
        config: Its `model_type` is one of transformers' own.

    Raises:
        InteropError: If transformers refuses it, or if its weights are quantized.
    """
    from transformers import AutoConfig

    if config.get("quantization_config"):
        raise InteropError(
            "config.json: quantization_config: kvlab reads no quantized weights; take the folder "
            "that they were made from"
        )
    if config.get("per_layer_config"):
        raise InteropError("config.json: per_layer_config: kvlab does not read it")
    # Before transformers makes a list of them.
    layers = config.get("num_hidden_layers", config.get("n_layer", 1))
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        raise InteropError(
            f"config.json: the number of layers ({str(layers)[:20]}) must be from 1 to {MAX_LAYERS}"
        )
    rest = {str(key): value for key, value in config.items() if key not in _NOT_PASSED_ON}
    try:
        return AutoConfig.for_model(config["model_type"], **rest)
    except Exception as error:  # whatever a validator, or a division by zero, raises
        reason = " ".join(str(error).split())[:200]
        raise InteropError(f"config.json: transformers cannot read it ({reason})") from error


def require(read: Any, key: str, value: Any, why: str) -> None:
    """Refuse a configuration that has another value for a key.

    Raises:
        InteropError: Naming the key.
    """
    found = getattr(read, key, value)
    if found != value:
        raise InteropError(f"config.json: {key} ({str(found)[:60]}) must be {value}: {why}")


def require_sizes(read: Any) -> None:
    """Refuse a configuration in which a size is no whole number.

    Transformers checks some of them only, and computes with none when it reads them.

    Raises:
        InteropError: Naming the key.
    """
    for key in (*_SIZES, *_OPTIONAL_SIZES):
        if not hasattr(read, key):
            continue
        found = getattr(read, key)
        if type(found) is not int and not (found is None and key in _OPTIONAL_SIZES):
            raise InteropError(f"config.json: {key} ({str(found)[:60]}) must be a whole number")


def rope_theta_of(read: Any) -> float:
    """Return the base of RoPE's frequencies.

    Raises:
        InteropError: If they are scaled, or rotate a part of each head only.
    """
    rope = read.rope_parameters or {}
    theta = default_theta(rope)
    for holder, part in (("rope_parameters", rope), ("config.json", vars(read))):
        share = part.get("partial_rotary_factor")
        if share not in (None, 1):
            raise InteropError(
                f"config.json: partial_rotary_factor ({str(share)[:60]}, in {holder}) must be 1: "
                "kvlab's layout of a partly rotated head is another"
            )
    return theta


def default_theta(rope: Mapping[str, Any]) -> float:
    """Return the base of the frequencies that a table of RoPE's parameters describes.

    Raises:
        InteropError: If they are scaled.
    """
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    if kind != "default":
        raise InteropError(
            f"config.json: rope_parameters (or rope_scaling): rope_type ({str(kind)[:60]}) must be "
            "default: kvlab does not scale the frequencies of RoPE"
        )
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise InteropError(f"config.json: rope_theta ({str(theta)[:60]}) must be a number")
    return float(theta)


def shared_keys(config: GPTConfig, attention: SoftmaxAttentionConfig) -> dict[str, Any]:
    """Return what config.json says in the families that spell it as Llama.

    Args:
        config: Of the model.
        attention: Of a layer with RoPE, if any has it.
    """
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": attention.attention_bias,
        "attention_dropout": attention.attention_dropout,
        # The second is what transformers 4, and engines that read config.json themselves, know.
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope_theta},
        "rope_theta": attention.rope_theta,
        **common_keys(config),
    }


def common_keys(config: GPTConfig) -> dict[str, Any]:
    """Return what every family spells alike."""
    return {
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.end_of_document_id,
        "eos_token_id": config.end_of_document_id,
        "pad_token_id": None,
        "use_cache": True,
    }


def gpt_config(read: Any, attention: AttentionConfig, name: str, **others: Any) -> GPTConfig:
    """Return the model whose configuration transformers has read.

    Args:
        read: By transformers.
        attention: Its attention.
        name: The attention's.
        others: Fields that not every family has.
    """
    end = read.eos_token_id
    is_one = type(end) is int and 0 <= end < read.vocab_size
    return GPTConfig(
        name=read.model_type,
        vocab_size=read.vocab_size,
        max_position_embeddings=read.max_position_embeddings,
        hidden_size=read.hidden_size,
        num_hidden_layers=read.num_hidden_layers,
        num_attention_heads=read.num_attention_heads,
        tie_word_embeddings=bool(read.tie_word_embeddings),
        initializer_range=read.initializer_range,
        end_of_document_id=end if is_one else None,
        attention=attention.settings(name),
        **others,
    )


def head_count_name(heads: int, key_value_heads: int) -> str:
    """Return what attention with so many key-value heads is called."""
    if key_value_heads == heads:
        return "mha"
    return "mqa" if key_value_heads == 1 else "gqa"


def refuse(problems: list[str]) -> None:
    """Raise if there are problems.

    Raises:
        InteropError: Naming all of them.
    """
    if problems:
        raise InteropError(
            f"no stock class of transformers expresses this model: {'; '.join(problems)}"
        )


def with_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the names that `LlamaForCausalLM` has for its own."""
    return {
        name if name.startswith("lm_head.") else f"model.{name}": tensor
        for name, tensor in weights.items()
    }


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `with_prefix`."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def rope_block_problems(config: GPTConfig) -> list[str]:
    """Return what a block has that no stock class with RMSNorm and SwiGLU has."""
    found = []
    if config.position_embedding == "learned":
        found.append(
            "model.position_embedding=learned: positions that are learned at the input; no stock "
            "class has them with RMSNorm, SwiGLU or a latent attention; train with RoPE "
            "(attention=mha, mqa, gqa or mla), or GPT-2's block (block=classic attention=mha)"
        )
    elif config.norm != "rms_norm" or config.mlp != "swiglu":
        found.append(
            f"model.norm={config.norm} with model.mlp={config.mlp} and no learned positions; train "
            "with model.norm=rms_norm model.mlp=swiglu (block=modern), or GPT-2's block "
            "(block=classic attention=mha)"
        )
    return found
