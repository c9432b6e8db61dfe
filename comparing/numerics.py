"""In which numerics variants were trained alike, and in which not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparing.labels import shown
from measuring.numerics import COMPARED

_NOT_RECORDED = "not recorded"


def compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[str], list[str]]:
    """Say in which numerics variants were trained alike, and in which not.

    Threads are left out: they change last bits only (`threads`).

    Args:
        runs: By variant, the rows of its runs, with `trained_with`.

    Returns:
        What was equal and what was not; both are empty where no run has recorded any.
    """
    rows = [row for some in runs.values() for row in some]
    if not any(row.get("trained_with") for row in rows):
        return [], []
    held, differs = [], []
    for key, (name, _) in COMPARED.items():
        by_variant = {label: _values(some, key) for label, some in runs.items()}
        values = sorted({value for found in by_variant.values() for value in found})
        if len(values) == 1:
            held.append(f"{name} {values[0]}")
        else:
            parts = (f"{' and '.join(found)} ({label})" for label, found in by_variant.items())
            differs.append(f"{name}: {', '.join(parts)}")
    return held, differs


def threads(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say with how many threads runs were trained, which of them where they differ."""
    by_number: dict[str, list[str]] = {}
    for row in rows:
        [number] = _values([row], "num_threads")
        by_number.setdefault(number, []).append(str(row["run_name"]))
    if len(by_number) == 1:
        return next(iter(by_number))
    return "; ".join(f"{number} ({', '.join(names)})" for number, names in by_number.items())


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    found = {_in_words((row.get("trained_with") or {}).get(key)) for row in rows}
    return sorted(found)


def _in_words(value: Any) -> str:
    if value is None:
        return _NOT_RECORDED
    # A run is anybody's: without markup, but for the arrow of a change.
    return re.sub(r"[^\w .,:;+=/()%>-]", "?", " ".join(shown(value).split()))[:200]
