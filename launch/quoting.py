"""Quotes, brackets, commas and numbers, as Hydra's grammar has them and as users type them."""

import re
from decimal import Decimal

from launch.errors import ConfigError

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([kKmMbBgGtT]?)")
_THOUSANDS = {"": 0, "k": 3, "m": 6, "b": 9, "g": 9, "t": 12}
# A value that could take the machine is refused by its rule, not computed here.
_MOST_DIGITS = 40


def quoted(value: str, *, keeps_interpolations: bool = True) -> str:
    """Quote any text for Hydra's grammar.

    Args:
        value: The text.
        keeps_interpolations: Whether `${key}` in it is that key's value, or just these characters.
    """
    if not keeps_interpolations:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", value) + "'"


def require_closed(key: str, value: str) -> None:
    """Refuse a value with a quote, bracket, brace or parenthesis that is not closed."""
    rest = QUOTED.sub("", value)
    if re.search(r"(?<!\\)['\"]", rest):
        raise ConfigError(f"{key}: a quote is not closed in {value}")
    for opening, closing, name in (("[", "]", "bracket"), ("{", "}", "brace"), ("(", ")", "paren")):
        if rest.count(opening) != rest.count(closing):
            name = "parenthesis" if name == "paren" else name
            raise ConfigError(f"{key}: a {name} is not closed in {value}")


def split_at_commas(value: str) -> list[str]:
    """Split where a comma is in no quotes and no brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(value):
        if found := QUOTED.match(value, position):
            position = found.end()
            continue
        character = value[position]
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth <= 0:
            pieces.append(value[start:position])
            start = position + 1
        position += 1
    return [*pieces, value[start:]]


def whole_number(value: str) -> str:
    """Write 1e9, 1.5M, 1_000_000 and lists of such as digits; leave all else as it is."""
    if (is_list := value.strip()).startswith("[") and is_list.endswith("]"):
        inner = [whole_number(piece.strip()) for piece in split_at_commas(is_list[1:-1])]
        return f"[{','.join(inner)}]"
    found = _NUMBER.fullmatch(value.strip())
    if found is None:
        return value
    if re.fullmatch(r"[+-]?\d+", value.strip()):
        return value.strip()
    exponent = _THOUSANDS[found[2].lower()]
    written = Decimal(found[1].replace("_", ""))
    if abs(written.adjusted()) + exponent > _MOST_DIGITS:
        return value
    number = written.scaleb(exponent)
    return str(int(number)) if number == number.to_integral_value() else value
