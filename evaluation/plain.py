"""What a run brings, shown without markup."""

import re
from typing import Any


def plain(value: Any, longest: int = 60) -> str:
    """Return a value that a run brings as text without markup, on one line."""
    return re.sub(r"[^\w .,:;+=/()%-]", "?", " ".join(str(value).split()))[:longest]


def shown(value: Any) -> str:
    """Return a value as `plain` does, a whole number with commas."""
    return f"{value:,}" if type(value) is int else plain(value)
