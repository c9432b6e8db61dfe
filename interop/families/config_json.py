"""What the families share: a table of fields, config.json as transformers reads it, refusals."""

from collections.abc import Mapping
from typing import Any

from interop.errors import InteropError
from modeling.attention import AttentionConfig
from modeling.config import MAX_LAYERS, GPTConfig

# The family, which is given by itself; a table that would replace the class's own; and the labels
# of classifiers, of which transformers makes a table with as many lines as the file says.
_NOT_PASSED_ON = ("model_type", "attribute_map", "num_labels", "id2label", "label2id")

FIELDS = {
    **{
        name: name
        for name in (
            *("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size"),
            *("num_hidden_layers", "num_attention_heads", "initializer_range"),
            "tie_word_embeddings",
        )
    },
    "norm_eps": "rms_norm_eps",
}
"""Fields of kvlab's model, and their keys in config.json where Llama's spelling is followed."""
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
        InteropError: If transformers refuses it, if its weights are quantized, or a size is no
            whole number: transformers checks some of them only, and computes with none.
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
        read = AutoConfig.for_model(config["model_type"], **rest)
    except Exception as error:  # whatever a validator, or a division by zero, raises
        reason = " ".join(str(error).split())[:200]
        raise InteropError(f"config.json: transformers cannot read it ({reason})") from error
    for key in (*_SIZES, *_OPTIONAL_SIZES):
        found = getattr(read, key, 0)
        if type(found) is not int and not (found is None and key in _OPTIONAL_SIZES):
            raise InteropError(f"config.json: {key} ({str(found)[:60]}) must be a whole number")
    return read


def require(read: Any, key: str, value: Any, why: str) -> None:
    """Refuse a configuration that has another value for a key.

    Raises:
        InteropError: Naming the key.
    """
    found = getattr(read, key, value)
    if found != value:
        raise InteropError(f"config.json: {key} ({str(found)[:60]}) must be {value}: {why}")


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


def written(config: GPTConfig, fields: Mapping[str, str], **others: Any) -> dict[str, Any]:
    """Return what config.json says of a model: its fields, what all families say, and others."""
    end = config.end_of_document_id
    keys = {theirs: getattr(config, ours) for ours, theirs in fields.items()}
    keys |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None, "use_cache": True}
    return keys | others


def written_as_llama(
    config: GPTConfig, attention: Any, sizes: tuple[str, ...], fields: Mapping[str, str] = FIELDS
) -> dict[str, Any]:
    """Return the same for a family that spells it as Llama.

    Args:
        config: The model.
        attention: That of a layer with RoPE, if any has it.
        sizes: Fields of the attention that config.json has by the same name.
        fields: As for `written`.
    """
    names = ("attention_bias", "attention_dropout", "rope_theta", *sizes)
    # The older `rope_theta` is what transformers 4, and engines that read config.json, know.
    rope = {"rope_type": "default", "rope_theta": attention.rope_theta}
    others = {name: getattr(attention, name) for name in names}
    return written(config, fields, hidden_act="silu", rope_parameters=rope, **others)


def attention_fields(read: Any, sizes: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of an attention that `written_as_llama` writes, but for RoPE's base."""
    return {
        "attention_bias": bool(getattr(read, "attention_bias", False)),
        "attention_dropout": float(read.attention_dropout or 0.0),
        **{name: getattr(read, name) for name in ("hidden_size", "num_attention_heads", *sizes)},
    }


def gpt_config(
    read: Any, fields: Mapping[str, str], attention: AttentionConfig, name: str, **others: Any
) -> GPTConfig:
    """Return the model whose configuration transformers has read.

    Args:
        read: By transformers.
        fields: As for `written`.
        attention: Its attention.
        name: The attention's.
        others: Fields that not every family has.
    """
    end = read.eos_token_id
    is_one = type(end) is int and 0 <= end < read.vocab_size
    values = {ours: getattr(read, theirs) for ours, theirs in fields.items()}
    values |= {
        "name": read.model_type,
        "tie_word_embeddings": bool(read.tie_word_embeddings),
        "end_of_document_id": end if is_one else None,
        "mlp_bias": bool(getattr(read, "mlp_bias", False)),
        "attention": attention.settings(name),
    }
    return GPTConfig(**(values | others))


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


def unlike(key: str, found: Any, wanted: Any, why: str) -> list[str]:
    """Return the problem of a setting that has another value than the class, if it has."""
    if found == wanted:
        return []
    old, new = (str(v).lower() if isinstance(v, bool) else v for v in (found, wanted))
    return [f"{key}={old}: {why}; train with {key}={new}"]


def rope_block_problems(config: GPTConfig) -> list[str]:
    """Return what a block has that no stock class with RMSNorm and SwiGLU has."""
    if config.position_embedding == "learned":
        return [
            "model.position_embedding=learned: positions that are learned at the input; no stock "
            "class has them with RMSNorm, SwiGLU or a latent attention; train with RoPE "
            "(attention=mha, mqa, gqa or mla), or GPT-2's block (block=classic attention=mha)"
        ]
    if config.norm != "rms_norm" or config.mlp != "swiglu":
        return [
            f"model.norm={config.norm} with model.mlp={config.mlp} and no learned positions; train "
            "with model.norm=rms_norm model.mlp=swiglu (block=modern), or GPT-2's block "
            "(block=classic attention=mha)"
        ]
    return []
