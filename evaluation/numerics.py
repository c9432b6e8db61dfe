"""In what numbers runs were trained, and where: recorded, and compared between variants."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evaluation.labels import shown

_NOT_RECORDED = "not recorded"
# Of summary.json's `numerics`: what is reported, and which of `numerics_changed` concern it.
_COMPARED = {
    "dtype": ("training dtype", "precision"),
    "device": ("training device", "device"),
    "native_bfloat16": ("trained in native bfloat16", "native_bfloat16"),
}


def device_class(device: torch.device) -> str:
    """Name what computes: cpu, or a GPU by its model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def trained_with(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the numerics of a run's training; None where an older version recorded none.

    Args:
        summary: What summary.json holds.

    Returns:
        "dtype", "device", "native_bfloat16" and "num_threads", in words where the run was resumed
        with another.
    """
    recorded = summary.get("numerics")
    if not isinstance(recorded, Mapping):
        return None
    found = {key: recorded.get(key) for key in (*_COMPARED, "num_threads")}
    lines = summary.get("numerics_changed")
    changed = [str(line) for line in lines] if isinstance(lines, list) else []
    for key, (_, name) in _COMPARED.items():
        before = [line.partition(": ")[2] for line in changed if line.startswith(f"{name}: ")]
        if before:
            found[key] = "; ".join(before)
    return found


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
    for key, (name, _) in _COMPARED.items():
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
