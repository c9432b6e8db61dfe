"""What every attention promises, checked on a small one: a measured number for each promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modeling.attention import AttentionConfig
from modeling.contract.common import Finding, left_padding, randomise, run_through_cache
from modeling.contract.counts import cache_bytes, flops, parameters
from modeling.contract.gradients import gradient, gradient_check, initialisation, sharing
from modeling.contract.outputs import (
    causality,
    chunks,
    decoding,
    determinism,
    documents,
    oracle,
    padding,
    paths,
    positions,
    rows,
    shape,
    snapshot,
    truncation,
)
from modeling.contract.placements import placements, reading

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "causality",
    "chunks",
    "decoding",
    "examine",
    "left_padding",
    "oracle",
    "padding",
    "placements",
    "randomise",
    "reading",
    "run_through_cache",
    "truncation",
]

Check = Callable[[AttentionConfig], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    *(oracle, shape, decoding, chunks, paths, truncation, snapshot, padding, documents),
    *(causality, rows, positions, determinism, cache_bytes, parameters, flops),
    *(gradient, gradient_check, sharing, initialisation),
)


def examine(check: Check, config: AttentionConfig) -> Finding:
    """Make one check: what it found, of several the worst, or that the attention raised an error.

    Args:
        check: Of `CHECKS`; the first line of its docstring says what is promised.
        config: Of a small attention: a few heads, a width of some dozens.
    """
    try:
        findings = list(check(config))
    except Exception as error:
        reason = " ".join(str(error).split())
        return Finding(False, f"raised {type(error).__name__}: {reason}", "forward and build")
    if not findings:
        return Finding(True, "nothing to compare", "", made=False)
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        return failed[0]
    # Of what may be off by something, what is off most.
    compared = sorted((f for f in findings if f.share is not None), key=lambda f: -(f.share or 0))
    shown = [*compared[:1], *(finding for finding in findings if finding.share is None)]
    return Finding(True, "; ".join(finding.measured for finding in shown), "")
