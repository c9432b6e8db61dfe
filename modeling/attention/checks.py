"""What is wrong with a value of an `AttentionConfig`, as the line that the user reads."""

from typing import Any


def at_least(config: Any, minimum: int, *keys: str) -> list[str]:
    """Return a problem for each named field that is below `minimum`."""
    return [
        f"{key} ({value}) must be at least {minimum}; set model.attention.{key}"
        for key in keys
        if (value := getattr(config, key)) < minimum
    ]


def at_most(config: Any, key: str, limit: str) -> list[str]:
    """Return a problem if a named field is above another."""
    value, most = getattr(config, key), getattr(config, limit)
    if value <= most:
        return []
    return [f"{key} ({value}) must not exceed {limit} ({most}); set model.attention.{key}={most}"]


def small(config: Any, key: str) -> list[str]:
    """Return a problem if a named field, which is added to a mean square, is not in (0, 1)."""
    value = getattr(config, key)
    if 0.0 < value < 1.0:
        return []
    return [f"{key} ({value}) must be in (0, 1); set model.attention.{key}=1e-6"]


def known_path(config: Any) -> list[str]:
    """Return a problem if the field `decode_path` is none of `DECODE_PATHS`."""
    path = getattr(config, "decode_path", None)
    if path in config.DECODE_PATHS:
        return []
    *others, last = config.DECODE_PATHS
    return [
        f"decode_path ('{path}') must be {', '.join(others)} or {last}; "
        "set model.attention.decode_path=auto"
    ]
