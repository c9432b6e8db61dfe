"""Showing text that somebody else wrote."""

import unicodedata


def printable(text: str) -> str:
    """Show control characters as escapes, so that no text can command a terminal.

    Args:
        text: Any text, also with lone surrogates.

    Returns:
        The same, where line feeds and tabs stay, and all other control, format, surrogate and
        private characters are Python's escapes: every encoding of Unicode can hold it.
    """
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co")
        else letter.encode("unicode_escape").decode()
        for letter in text
    )
