"""What of a text a tokenizer does not give back: unknown words, capitals, accents, white space."""

import json
from collections import Counter
from typing import TYPE_CHECKING

from data.tokenizing.tokenizer import byte_level_parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def gives_back_all(tokenizer: "Tokenizer") -> bool:
    """Return whether a tokenizer is byte-level, changes nothing before, and has all 256 bytes."""
    from tokenizers import pre_tokenizers

    described = byte_level_parts(tokenizer)
    return (
        described is not None
        and (described["decoder"] or {}).get("type") == "ByteLevel"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= described["model"]["vocab"].keys()
    )


class LostBytes:
    """Measures what is lost when a text is encoded and decoded.

    Args:
        tokenizer: Of any kind.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        model = json.loads(tokenizer.to_str())["model"]
        unknown = model.get("unk_token")
        self._unknown = tokenizer.token_to_id(unknown) if unknown else model.get("unk_id")

    def of(self, text: str) -> int:
        """Count the UTF-8 bytes of a text that do not come back, or that others come back for.

        A space before the text is no loss: some tokenizers put one there, or take it.

        Returns:
            The bytes of the characters that are missing and of those that are new, at most those
            of the text; 0 exactly where the text comes back.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        known = [token for token in ids if token != self._unknown]
        back = self._tokenizer.decode(known, skip_special_tokens=False)
        if len(known) == len(ids) and back in (text, f" {text}", text.removeprefix(" ")):
            return 0
        given, taken = Counter(text), Counter(back)
        changed = (given - taken) + (taken - given)
        lost = sum(len(letter.encode()) * number for letter, number in changed.items())
        return min(max(lost, 1), len(text.encode()))
