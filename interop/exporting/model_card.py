"""The model card: what a folder holds, where it comes from, how good it is and how to load it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.prepared import PreparedData
from data.splits import TRAIN, VALIDATION
from guards.printable import as_code
from interop.exporting.agreement import Agreement
from interop.families.layers import layers_of, window_of
from interop.stock import DTYPES, Stock
from modeling.accounting import (
    cache_curve,
    kv_cache_bytes,
    mha_cache_bytes_per_token,
    num_parameters,
)
from modeling.arrangement import layer_configs
from modeling.attention import attention_config
from modeling.attention.tied import TiedAttentionConfig
from modeling.config import GPTConfig


class Licence(NamedTuple):
    """A licence as the Hub writes it, and in words."""

    identifiers: list[str]
    words: str


# What docs/data.md says of the corpora that kvlab knows, by the Hub's name or kvlab's.
LICENCES = {
    "python_stdlib": Licence(["other"], "PSF License"),
    "Salesforce/wikitext": Licence(["cc-by-sa-3.0", "gfdl"], "CC BY-SA 3.0 and GFDL"),
    "roneneldan/TinyStories": Licence(["cdla-sharing-1.0"], "CDLA-Sharing-1.0"),
    "HuggingFaceFW/fineweb-edu": Licence(["odc-by"], "ODC-By 1.0, and Common Crawl's terms of use"),
}
_UNKNOWN = Licence(["unknown"], "not known to kvlab; find out before you publish this model")
_WIDTHS = (
    *("num_attention_heads", "num_key_value_heads", "head_dim", "kv_lora_rank"),
    *("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Args:
        name: The run's name, or the folder's.
        is_run: Whether kvlab trained it.
        summary: summary.json of the run; empty where it has not finished, or there is none.
        recorded: The run's configuration with dotted keys.
        conversion: What its attention was made from after the training, if it was.
    """

    name: str
    is_run: bool
    summary: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    conversion: str | None = None

    @property
    def began_with(self) -> str | None:
        """The name of the folder whose weights the training began with, if it was one."""
        folder = self.recorded.get("init_from")
        return Path(str(folder)).name if folder else None


def model_card(
    stock: Stock,
    config: GPTConfig,
    prepared: PreparedData,
    origin: Origin,
    dtype: str,
    agreement: Agreement,
) -> str:
    """Return README.md.

    Args:
        stock: What was written.
        config: The configuration of kvlab's model.
        prepared: The data that it was trained on, or compared on.
        origin: Where the model comes from.
        dtype: That of the written weights.
        agreement: How the two compared.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # Markdown: what others wrote is quoted by as_code
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"as_code": as_code, "as_json": json.dumps}
    summary, context = origin.summary, config.max_position_embeddings
    windows = origin.recorded.get("eval.context") or context
    perplexity, bits = (summary.get(f"validation_{key}") for key in ("perplexity", "bits_per_byte"))
    is_measured = not origin.conversion and None not in (perplexity, bits)
    return environment.get_template("model_card.md.jinja").render(
        stock=stock,
        config=config,
        prepared=prepared,
        origin=origin,
        dtype=dtype,
        agreement=agreement,
        front=_front_matter(config, prepared, origin),
        model=_model_facts(config),
        data=_data_facts(prepared, origin),
        cache=_cache_facts(config, origin, agreement),
        model_type=stock.config["model_type"],
        num_parameters=num_parameters(config).total,
        num_stored=sum(tensor.numel() for tensor in stock.weights.values()),
        has_sinks_everywhere=all(layer.sinks for layer in layers_of(layer_configs(config))),
        is_tied=isinstance(attention_config(config.attention), TiedAttentionConfig),
        perplexity=perplexity if is_measured else None,
        bits=bits,
        context=windows,
        stride=origin.recorded.get("eval.stride") or windows,
        validation=prepared.splits[VALIDATION],
    )


def _front_matter(config: GPTConfig, prepared: PreparedData, origin: Origin) -> dict[str, Any]:
    """Return what the Hub reads, by key."""
    licence = licence_of(prepared, origin)
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": licence.identifiers if len(licence.identifiers) > 1 else licence.identifiers[0],
    }
    if licence.identifiers == ["other"]:
        fields["license_name"] = licence.words.lower().replace(" ", "-")
    fields["tags"] = ["kvlab", str(config.attention["name"])]
    path = prepared.source.get("path")
    if origin.is_run and prepared.source["source"] == "hub" and isinstance(path, str):
        fields["datasets"] = [path]
    return fields


def licence_of(prepared: PreparedData, origin: Origin) -> Licence:
    """Return the licence of a model's data as far as kvlab knows it."""
    source = prepared.source
    key = source.get("path") if source["source"] == "hub" else source["source"]
    # Weights that a training began with may come from anywhere.
    known = isinstance(key, str) and origin.is_run and not origin.began_with
    return LICENCES.get(key, _UNKNOWN) if isinstance(key, str) and known else _UNKNOWN


def _model_facts(config: GPTConfig) -> dict[str, Any]:
    """Return the sizes of a model, its attention, and how its layers differ."""
    attention = attention_config(config.attention)
    layers = layers_of(layer_configs(config))
    facts: dict[str, Any] = {
        "layers, width, MLP": f"{config.num_hidden_layers}, {config.hidden_size}, "
        f"{config.intermediate_size} ({config.mlp}, {config.norm})",
        "context": f"{config.max_position_embeddings:,} tokens",
        "vocabulary": f"{config.vocab_size or 0:,}",
        "attention": config.attention["name"],
        "arrangement of the layers": config.layers.name,
        **{key: getattr(attention, key) for key in _WIDTHS if hasattr(attention, key)},
    }
    if (window := window_of(layers)) is not None:
        full = [str(idx) for idx, layer in enumerate(layers) if layer.window is None]
        all_seen = f"; layers {', '.join(full)} (from 0) see all tokens" if full else ""
        facts["windows"] = f"the newest {window:,} tokens, the query's own included{all_seen}"
        sinks = any(layer.sinks for layer in layers)
        facts["sinks"] = "one per head of the layers with a window" if sinks else "none"
    if config.position_embedding == "learned":
        return facts | {"positions": "learned"}
    by_position: dict[str, list[str]] = {}
    for idx, layer in enumerate(layers):
        position = "none" if layer.theta is None else f"RoPE, theta {layer.theta:g}"
        by_position.setdefault(position, []).append(str(idx))
    for position, of in by_position.items():
        where = f" in layers {', '.join(of)} (from 0)" if len(by_position) > 1 else ""
        facts[f"positions{where}"] = position
    return facts


def _data_facts(prepared: PreparedData, origin: Origin) -> dict[str, Any]:
    facts = {
        "corpus": prepared.name,
        "revision": prepared.revision or "none recorded",
        "fingerprint": prepared.fingerprint,
        "tokenizer (sha256)": prepared.tokenizer_sha256,
        "training split": f"{prepared.splits[TRAIN].tokens:,} tokens",
        "licence of the data": licence_of(prepared, origin).words,
    }
    if origin.is_run:
        trained = origin.summary.get("tokens_trained")
        seen = f"{trained:,}" if trained else "the training had not finished"
        facts["tokens trained" + (" (after that start)" if origin.began_with else "")] = seen
    return facts


def _cache_facts(config: GPTConfig, origin: Origin, agreement: Agreement) -> dict[str, Any]:
    context, curve = config.max_position_embeddings, cache_curve(config)
    growth = f"{curve.slope:,}"
    if curve.plateau:
        growth += f" up to {curve.plateau:,} tokens, then {curve.slope_beyond:,}"
    by_formula = {name: kv_cache_bytes(config, context, dtype) for name, dtype in DTYPES.items()}
    of_mha = by_formula["float32"] / (context * mha_cache_bytes_per_token(config))
    listed = ", ".join(f"{size:,} in {name}" for name, size in by_formula.items())
    facts = {
        f"bytes of a sequence of {context:,} tokens by kvlab's formula": f"{listed}; {of_mha:.3f} "
        "of multi-head attention's",
        "bytes per token by that formula": f"{growth} in float32",
    }
    measured = origin.summary.get("kv_cache_bytes_measured")
    if measured is not None and not origin.conversion:
        facts["measured in kvlab's cache"] = (
            f"{measured:,.0f} per token in float32, in the mean over the context"
        )
    # Where a window is full, transformers' is one token shorter between two steps than within one.
    tokens = agreement.cache_tokens
    facts["measured in transformers' own cache"] = (
        f"{agreement.cache_bytes:,} for {tokens:,} tokens in float32, for which kvlab's formula "
        f"says {kv_cache_bytes(config, tokens):,}"
    )
    return facts
