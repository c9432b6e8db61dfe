"""JSON objects that carry a hash of their content."""

import hashlib
import json
from typing import Any

_HASH = "content_sha256"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Add a hash of the content itself, which reveals damage, though not a forgery.

    Args:
        content: JSON values.
    """
    return content | {_HASH: _hash_of(content)}


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return what was `sealed`.

    Raises:
        ValueError: If the content is not what was sealed.
    """
    content = dict(content)
    found = content.pop(_HASH, None)
    try:
        expected = _hash_of(content)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if found != expected:
        raise ValueError(f"its content does not have the {_HASH} that it states")
    return content


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
