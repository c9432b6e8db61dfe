"""Rows of results as tables: for the terminal, for Markdown, for wandb."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.errors import EvaluationError
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
    return (
        f"{card['corpus']}, {card['split']} split: {row['tokens_scored']:,} tokens scored, each "
        f"once, context {card['context']}, stride {card['stride']}, {card['dtype']}"
        f"{documents}; {card['words']:,} words, {card['utf8_bytes']:,} bytes; tokenizer "
        f"{card['tokenizer_sha256'][:12]}, data {card['data_fingerprint'][:12]}"
    )


NOTE = (
    "KV bytes/token is the closed form over all layers; measured is the live cache's storage after "
    "a real decode, per allocated token. The ratio is to multi-head attention of the same width. "
    "One run per row: differences within the noise of seeds are not resolved."
)


def write_report(
    folder: Path, groups: Sequence[Sequence[dict[str, Any]]], command: str, when: str
) -> None:
    """Write results.json and report.md.

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
        parts += [protocol_line(group[0]) + ".", table(group, "github")]
    write_text(folder / "report.md", "\n\n".join([*parts, NOTE]) + "\n")
