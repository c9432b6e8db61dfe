"""One text read in several tokenizers' tokens: bits per byte, which alone may be compared."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from comparing.differences import mean_document_nll
from comparing.statistics import text_interval
from comparing.variants import Group, Variant
from data.documents import document_bytes

ACROSS_TITLE = "Across tokenizers: bits per byte only"
ACROSS_NOTE = (
    "The same text in different tokens: a perplexity per token says nothing here. Text: 95 % "
    "interval over the documents, whose bytes are the same for all; the difference to the best is "
    "paired by document."
)
_TEXT = ("corpus", "revision", "split", "words", "utf8_bytes")
"""What cards of one text share."""


def across_tokenizers(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Set the variants of all groups that scored one text side by side.

    A variant whose tokenizer leaves a part of the text out is left out: that part cost it nothing.

    Args:
        groups: Each of one protocol card, as `variants.compare` returns them.

    Returns:
        For each text that was read in more than one tokenizer's tokens: the fields of its cards
        that say which it is, and `variants`, rows with `bits_per_byte` (mean over seeds), its
        interval over the text, the difference to the lowest, and what they are of; the lowest
        first.
    """
    texts: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.runs[0].windows is not None:
            text = tuple(group.protocol.get(key) for key in _TEXT)
            texts.setdefault(text, []).append(group)
    found = []
    for text, some in texts.items():
        whole = [
            (variant, group)
            for group in some
            for variant in group.variants
            if variant.runs[0].row.get("reads_whole_text", True)
        ]
        if len({group.protocol["tokenizer_sha256"] for _, group in whole}) < 2:
            continue
        whole.sort(key=lambda one: one[0].result["bits_per_byte"])
        num_bytes = _document_bytes([group for _, group in whole])
        rows = [
            _row(variant, group) | _bits(variant, num_bytes, whole[0][0])
            for variant, group in whole
        ]
        found.append(dict(zip(_TEXT, text, strict=True)) | {"variants": rows})
    return found


_bytes_of = lru_cache(maxsize=8)(document_bytes)  # a report may be written twice


def _document_bytes(groups: Sequence[Group]) -> list[int] | None:
    """Return the bytes of each document, by the first tokens that give the whole text back."""
    for group in groups:
        run = group.runs[0]
        if run.prepared and (found := _bytes_of(run.prepared, run.row["split"])):
            return found
    return None


def _bits(variant: Variant, num_bytes: list[int] | None, best: Variant) -> dict[str, Any]:
    """Return the intervals of a row, and its difference to the best one."""
    keys = ("bits_per_byte_ci95_text", "delta_bits_per_byte", "delta_bits_per_byte_ci95_text")
    nats, lowest = (mean_document_nll([*one.by_seed().values()]) for one in (variant, best))
    if num_bytes is None or not len(num_bytes) == len(nats) == len(lowest):
        return dict.fromkeys(keys)
    bits, difference = nats / math.log(2), (nats - lowest) / math.log(2)
    if variant is best:
        return dict.fromkeys(keys) | {keys[0]: text_interval(bits, num_bytes)}
    values = (
        text_interval(bits, num_bytes),
        float(difference.sum()) / sum(num_bytes),
        text_interval(difference, num_bytes),
    )
    return dict(zip(keys, values, strict=True))


def _row(variant: Variant, group: Group) -> dict[str, Any]:
    result, card = variant.result, group.protocol
    return {
        "name": variant.label,
        "attention": result["attention"],
        "seeds": result["seeds"],
        "num_parameters": result["num_parameters"],
        "bits_per_byte": result["bits_per_byte"],
        "tokenizer_sha256": card["tokenizer_sha256"],
        "tokens": card["tokens"],
        "context": card["context"],
        "stride": card["stride"],
        "kv_cache_context": result["kv_cache_context"],
        "kv_cache_bytes_at_context": result["kv_cache_bytes_at_context"],
    }
