"""One text read in several tokenizers' tokens: bits per byte, which alone may be compared."""

import math
from collections.abc import Sequence
from typing import Any

from evaluation.variants import Group, Variant

ACROSS_TITLE = "Across tokenizers: bits per byte only"
ACROSS_NOTE = (
    "The same text in different tokens: a perplexity per token says nothing here, and windows "
    "cannot be paired. Text: 95 % block bootstrap over the windows of each variant by itself, so "
    "the overlap of two intervals decides nothing."
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
        interval over the text, and what they are of; the lowest first.
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
        rows = [_row(variant, group) for variant, group in whole]
        rows.sort(key=lambda row: row["bits_per_byte"])
        found.append(dict(zip(_TEXT, text, strict=True)) | {"variants": rows})
    return found


def _row(variant: Variant, group: Group) -> dict[str, Any]:
    result, card = variant.result, group.protocol
    interval = result["nll_ci95_text"]
    # Nats per scored token to bits per byte of the whole text, as Score.bits_per_byte.
    scored = variant.runs[0].row["tokens_scored"]
    factor = scored / (math.log(2) * card["utf8_bytes"])
    return {
        "name": variant.label,
        "attention": result["attention"],
        "seeds": result["seeds"],
        "num_parameters": result["num_parameters"],
        "bits_per_byte": result["bits_per_byte"],
        "bits_per_byte_ci95_text": interval and [factor * end for end in interval],
        "tokenizer_sha256": card["tokenizer_sha256"],
        "tokens": card["tokens"],
        "context": card["context"],
        "stride": card["stride"],
        "kv_cache_bytes_measured": result["kv_cache_bytes_measured"],
    }
