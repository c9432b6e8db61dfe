"""Showing text that somebody else wrote."""

import re
import unicodedata

# What joins and parts letters in Persian, emoji and hyphenated words is invisible, no command.
_HARMLESS = "\n\t\u200c\u200d\u00ad"


def printable(text: str) -> str:
    """Show control characters as escapes, so that no text can command a terminal.

    Args:
        text: Any text, also with lone surrogates.

    Returns:
        The same, where line ends are line feeds, and control, format, surrogate and private
        characters are Python's escapes, but for tabs and what joins letters: every encoding of
        Unicode can hold it.
    """
    return "".join(
        letter
        if letter in _HARMLESS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co")
        else letter.encode("unicode_escape").decode()
        for letter in re.sub("\r\n", "\n", text)
    )


def as_code(value: object) -> str:
    """Quote a value for Markdown, on one line, so that nothing in it is markup."""
    return f"`{' '.join(str(value).replace('`', '?').split())}`"
