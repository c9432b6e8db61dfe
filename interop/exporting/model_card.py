"""The model card: what a folder holds, where it comes from, how good it is and how to load it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.prepared import PreparedData
from data.sources import TRAIN, VALIDATION
from guards.printable import as_code
from interop.exporting.agreement import Agreement
from interop.exporting.model_facts import cache_growth, model_facts, notes
from interop.stock import DTYPES, Stock
from modeling.accounting import kv_cache_bytes, mha_cache_bytes_per_token, num_parameters
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


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Args:
        name: The run's name, or the folder's.
        is_run: Whether kvlab trained it.
        summary: Of the run; empty where it has not finished, or there is none.
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
        config: Of kvlab's model.
        prepared: The data that it was trained on, or compared on.
        origin: Where the model comes from.
        dtype: Of the written weights.
        agreement: How the two compared.
    """
    sections = [
        _front_matter(config, prepared, origin),
        f"# {as_code(origin.name)}",
        _introduction(stock, config, origin, dtype),
        "## Use",
        _use(),
        "## Model",
        _list(model_facts(config)),
        "## Data" if origin.is_run else "## Data that it was compared on",
        _list(_data_facts(prepared, origin)),
        "## Quality",
        _quality(config, prepared, origin),
        "## KV cache",
        _list(_cache_facts(config, origin, agreement)),
        "## What was checked",
        _checked(agreement),
        "## What to know",
        _list(notes(stock, config)),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(config: GPTConfig, prepared: PreparedData, origin: Origin) -> str:
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
    # JSON is YAML.
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def licence_of(prepared: PreparedData, origin: Origin) -> Licence:
    """Return the licence of a model's data as far as kvlab knows it."""
    source = prepared.source
    key = source.get("path") if source["source"] == "hub" else source["source"]
    # Weights that a training began with may come from anywhere.
    known = isinstance(key, str) and origin.is_run and not origin.began_with
    return LICENCES.get(key, _UNKNOWN) if isinstance(key, str) and known else _UNKNOWN


def _introduction(stock: Stock, config: GPTConfig, origin: Origin, dtype: str) -> str:
    architecture = stock.config["architectures"][0]
    trained = "trained by kvlab" if origin.is_run else "from a folder of transformers"
    if origin.began_with:
        trained = f"trained further by kvlab from the weights in {as_code(origin.began_with)}"
    converted = f", {as_code(origin.conversion)} after the training" if origin.conversion else ""
    return (
        f"A small language model with {as_code(config.attention['name'])} attention, {trained}"
        f"{converted}, as transformers' own `{architecture}`: "
        f"{num_parameters(config).total:,} parameters in {dtype}. It continues text and follows "
        "no instructions; nothing was done against false, offensive or private text."
    )


def _use() -> str:
    return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
tokens = model.generate(**tokenizer("def ", return_tensors="pt"), max_new_tokens=32)
print(tokenizer.decode(tokens[0]))
```

In vLLM (not tried when this card was written): `vllm serve path/to/this/folder`."""


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


def _quality(config: GPTConfig, prepared: PreparedData, origin: Origin) -> str:
    summary = origin.summary
    perplexity, bits = (summary.get(f"validation_{key}") for key in ("perplexity", "bits_per_byte"))
    if origin.conversion or perplexity is None or bits is None:
        return (
            "Not measured as it is here. `python eval_model.py hf=path/to/this/folder "
            f"data_folder=data/prepared/{prepared.folder.name}` of kvlab measures it."
        )
    context = origin.recorded.get("eval.context") or config.max_position_embeddings
    stride = origin.recorded.get("eval.stride") or context
    counts = prepared.splits[VALIDATION]
    overfit = ""
    if summary.get("overfit_batches"):
        overfit = " It memorised a few sequences, so that these numbers say nothing."
    return (
        f"Validation perplexity {perplexity:.3f}, {bits:.4f} bits per byte, at the end of the "
        f"training, with float32 weights: {counts.tokens - 1:,} tokens of "
        f"{as_code(prepared.name)}'s validation split ({counts.words:,} words, "
        f"{counts.utf8_bytes:,} bytes), each scored once, in windows of {context} tokens with "
        f"stride {stride}. Of perplexities only those with this tokenizer and text compare; bits "
        f"per byte compare across tokenizers on this text.{overfit}"
    )


def _cache_facts(config: GPTConfig, origin: Origin, agreement: Agreement) -> dict[str, Any]:
    context = config.max_position_embeddings
    by_formula = {name: kv_cache_bytes(config, context, dtype) for name, dtype in DTYPES.items()}
    of_mha = by_formula["float32"] / (context * mha_cache_bytes_per_token(config))
    listed = ", ".join(f"{size:,} in {name}" for name, size in by_formula.items())
    facts = {
        f"bytes of a sequence of {context:,} tokens by kvlab's formula": f"{listed}; {of_mha:.3f} "
        "of multi-head attention's",
        "bytes per token by that formula": f"{cache_growth(config)} in float32",
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


def _checked(agreement: Agreement) -> str:
    return (
        f"transformers loaded this folder and gave, for {agreement.documents} texts of the "
        f"validation split, kvlab's logits at all {agreement.positions:,} positions (largest "
        f"difference {agreement.difference:.1e}, rounding allows {agreement.tolerance:.1e}), and "
        f"its `generate` with its own cache the same {agreement.new_tokens} tokens of greedy "
        "text. Both computed in float32 with the weights as they are stored here."
    )


def _list(facts: Mapping[str, Any] | list[str]) -> str:
    if isinstance(facts, list):
        return "\n".join(f"- {fact}" for fact in facts)
    return "\n".join(f"- {key}: {as_code(value)}" for key, value in facts.items())
