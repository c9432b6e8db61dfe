"""The first words of a corpus: a prompt that any model trained on it can continue."""

import re

from data.prepared import PreparedData
from data.sources import VALIDATION

_TOKENS = 64
_WORDS = 3
_CHARACTERS = 24


def opening(prepared: PreparedData) -> str:
    """Return the first words of the validation split, at least one character.

    Raises:
        DataError: If the split is not what was written.
    """
    stream = prepared.stream(VALIDATION)
    ids = stream.window(0, min(_TOKENS, len(stream))).tolist()
    # A character of several bytes may be cut at the end.
    text = prepared.tokenizer().decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    words = re.match(rf"\s*(?:\S+\s+){{0,{_WORDS - 1}}}\S+", text)
    found = words.group(0).lstrip() if words else ""
    return found[:_CHARACTERS] if len(found) > 2 * _CHARACTERS else found or text or " "
