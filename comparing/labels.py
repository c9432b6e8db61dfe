"""Keys and numbers as a reader should see them."""

import re
from typing import Any

NONE = "\N{EN DASH}"
"""Stands for a value that there is not."""
_LABELS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by length",
    "bits_per_byte": "bits/byte",
    "data_fingerprint": "data (SHA-256)",
    "decode_path": "scored through",
    "dtype": "weights",
    "intra_document_mask": "attention within documents only",
    "mlp": "MLP",
    "tokenizer_sha256": "tokenizer (SHA-256)",
    "utf8_bytes": "bytes (UTF-8)",
}
_UNITS = (
    "%|[KMG]?i?B|ms|s|min|h|bytes?|tokens?|words?|seeds?|layers|query heads|sequences|documents|"
    "training tokens|configurations?|models?|parameters"
)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def label(key: str) -> str:
    """Name a key in words; a dotted one, which is a setting, follows in parentheses to be typed."""
    last = key.rsplit(".", 1)[-1]
    words = _LABELS.get(last) or last.replace(",", ", ").replace("_", " ")
    return f"{words} ({key})" if "." in key else words


def shown(value: Any) -> str:
    """Write a value out: numbers in groups of three digits, yes or no, a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def typeset(text: str) -> str:
    """Set signs and spaces: true minus signs, powers of ten, no line's end before a unit."""
    text = re.sub(r"(?<![^\s(\[,;])-(?=\.?\d)", "\N{MINUS SIGN}", text)
    text = re.sub(
        r"(?<![\w.-])(\u2212?\d+(?:\.\d+)?)e([+-])0*(\d+)\b",
        lambda found: _power(*found.groups()),
        text,
    )
    return re.sub(rf"(?<=\d) (?=(?:{_UNITS})(?!\w))", "\N{NO-BREAK SPACE}", text)


def _power(factor: str, sign: str, exponent: str) -> str:
    raised = f"{sign.replace('+', '')}{exponent}".translate(_SUPERSCRIPTS)
    return f"{factor}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}10{raised}"
