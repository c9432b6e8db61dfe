"""What a run brings, shown without markup."""

import re
from typing import Any

from comparing.labels import NONE


def plain(value: Any, longest: int = 60) -> str:
    """Return a value that a run brings as text without markup, on one line."""
    return re.sub(rf"[^\w .,:;+=/()%{NONE}-]", "?", " ".join(str(value).split()))[:longest]
