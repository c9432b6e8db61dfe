"""Rows of results as tables: for the terminal, for Markdown, for wandb."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.errors import EvaluationError
from evaluation.plots import plot_decode
from tracking.atomic import write_text

COLUMNS = {
    "run": "run_name",
    "attention": "attention",
    "positions": "positions",
    "parameters": "num_parameters",
    "tokens trained": "tokens_trained",
    "perplexity": "perplexity",
    "word perplexity": "word_perplexity",
    "bits/byte": "bits_per_byte",
    "KV bytes/token": "kv_cache_bytes_per_token",
    "measured": "kv_cache_bytes_measured",
    "ratio to MHA": "cache_ratio_to_mha",
}
"""Heading -> key of a row."""


def cells(row: dict[str, Any]) -> list[str]:
    """Format a row, column by column."""
    return [_cell(row[key]) for key in COLUMNS.values()]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:,.0f}"
            if value >= 1000 or (value == int(value) and value > 1)
            else f"{value:.3f}"
        )
    return str(value)


def table(rows: Sequence[dict[str, Any]], style: str) -> str:
    """Lay rows of one protocol out; style `simple` for a terminal, `github` for Markdown."""
    words = ("run_name", "attention", "positions")
    align = ["left" if key in words else "right" for key in COLUMNS.values()]
    return tabulate(
        [cells(row) for row in rows],
        headers=list(COLUMNS),
        tablefmt=style,
        colalign=align,
        disable_numparse=True,
    )


def protocol_line(row: dict[str, Any]) -> str:
    """Say in one line how a row's numbers came about."""
    card = row["protocol"]
    # Cards from before the option do not have it.
    documents = ", attention within documents" if card.get("intra_document_mask") else ""
    cached = ""
    if card.get("decode_path", "").startswith("token by token"):
        cached = f", {card['decode_path']}"
    return (
        f"{card['corpus']}, {card['split']} split: {row['tokens_scored']:,} tokens scored, each "
        f"once, context {card['context']}, stride {card['stride']}, {card['dtype']}{cached}"
        f"{documents}; {card['words']:,} words, {card['utf8_bytes']:,} bytes; tokenizer "
        f"{card['tokenizer_sha256'][:12]}, data {card['data_fingerprint'][:12]}"
    )


NOTE = (
    "KV bytes/token is the closed form over all layers; measured is the live cache's storage after "
    "a real decode, per allocated token. The ratio is to multi-head attention of the same width, "
    "cached in the dtype of the weights. "
    "One run per row: differences within the noise of seeds are not resolved."
)


def decode_sections(rows: Sequence[dict[str, Any]], style: str) -> list[str]:
    """Lay the speed of decoding out, a title and a table for each batch; empty if none was timed.

    Args:
        rows: With `decode` and `break_even`, as `comparison.add_decode_speed` leaves them.
        style: As for `table`.
    """
    found = []
    points = [point for row in rows for point in row.get("decode", [])]
    for batch in sorted({point["batch"] for point in points}):
        contexts = sorted({point["context"] for point in points if point["batch"] == batch})
        beyond = {p["context"] for p in points if p["batch"] == batch and p["beyond_trained"]}
        body = []
        for row in rows:
            here = {p["context"]: p for p in row["decode"] if p["batch"] == batch}
            cells = [f"{p['ms_per_token']:.2f} ({p['roofline_ms']:.2f})" for p in here.values()]
            last = here[contexts[-1]]
            memory = [f"{last[key] / 1e6:,.1f}" for key in ("cache_bytes", "peak_extra_bytes")]
            even = row["break_even"][str(batch)]
            never = "" if row["attention"] == "mha" else "-"
            body.append([row["run_name"], *cells, *memory, f"{even:,}" if even else never])
        headers = ["run", *(f"{c:,}{'*' if c in beyond else ''}" for c in contexts)]
        headers += [f"cache MB at {contexts[-1]:,}", "extra MB", "faster than MHA from"]
        aligned = ["left", *["right"] * (len(headers) - 1)]
        shown = tabulate(
            body, headers=headers, tablefmt=style, colalign=aligned, disable_numparse=True
        )
        found += [f"decoding, batch {batch}: ms per token at a context (roofline)", shown]
    return found


DECODE_NOTE = (
    "Decoding: median over rounds in which every run had a turn, caches filled with noise; "
    "roofline: weights and cache read once at the measured memory bandwidth; * is longer than the "
    "contexts of some run's training; extra MB is the most that a step takes besides weights and "
    "cache; a run is faster than MHA from that context on, and at all longer ones that were "
    "measured (-: at none, or there is no run of MHA). The same weights and cache are read again "
    "and again: what fits into the processor's caches can be faster than this roofline."
)


def write_report(
    folder: Path, groups: Sequence[Sequence[dict[str, Any]]], command: str, when: str
) -> None:
    """Write results.json, report.md and, where decoding was timed, decode.png.

    Args:
        folder: Where; made if need be.
        groups: Rows, one list per protocol.
        command: What was typed.
        when: The date.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"cannot make {folder} ({error.strerror}); set reports_dir to a folder that you may "
            "write to"
        ) from error
    rows = [row for group in groups for row in group]
    write_text(folder / "results.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    parts = [f"# {folder.name}", f"`{command}`, {when}"]
    for group in groups:
        if group[0]["perplexity"] is not None:
            parts += [protocol_line(group[0]) + "."]
        parts += [table(group, "github")]
    parts += [NOTE]
    if sections := decode_sections(rows, "github"):
        plot_decode(rows, folder / "decode.png")
        parts += [*sections, DECODE_NOTE, "![Milliseconds per token against context](decode.png)"]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
