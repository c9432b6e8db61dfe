"""In what numbers a run was trained, and where, as its summary says."""

from collections.abc import Mapping
from typing import Any

import torch

# Of summary.json's `numerics`: what is reported, and which of `numerics_changed` concern it.
NUMERICS = {
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
    found = {key: recorded.get(key) for key in (*NUMERICS, "num_threads")}
    lines = summary.get("numerics_changed")
    changed = [str(line) for line in lines] if isinstance(lines, list) else []
    for key, (_, name) in NUMERICS.items():
        before = [line.partition(": ")[2] for line in changed if line.startswith(f"{name}: ")]
        if before:
            found[key] = "; ".join(before)
    return found
