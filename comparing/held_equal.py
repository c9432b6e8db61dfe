"""What the variants of a table have in common, and what differs, in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparing.labels import label, shown
from comparing.plain import plain
from comparing.recipes import COMPARED, PARAMETERS_TOLERANCE, differing_keys, unequal
from comparing.variant import LAYERS, UNIFORM, Variant
from measuring.numerics import NUMERICS


def unranked(variants: Sequence[Variant]) -> list[str]:
    """Say what differs between variants that has to be equal where they are ranked."""
    found: dict[str, dict[str, None]] = {}  # values by what they are of, each once
    trained = [variant for variant in variants if not variant.is_external]
    for number, one in enumerate(trained):
        for other in trained[number + 1 :]:
            for key, values in unequal(one.runs[0], other.runs[0]).items():
                texts = (plain(shown(value)) for value in values)
                found.setdefault(key, {}).update(dict.fromkeys(texts))
    said = [f"{plain(label(key), 120)} ({' and '.join(values)})" for key, values in found.items()]
    external = [plain(variant.label) for variant in variants if variant.is_external]
    if external and len(variants) > 1:
        said.append(f"training, which is not known of {', '.join(external)}")
    return said


_NOT_RECORDED = "not recorded"
_HELD = {
    "data.name": "corpus {}",
    "model.num_hidden_layers": "{} layers",
    "model.hidden_size": "width {}",
    "model.num_attention_heads": "{} query heads",
    "trainer.max_tokens": "{} training tokens asked for",
    "trainer.sequences_per_step": "{} sequences a step",
    "optim.name": "optimizer {}",
    "optim.learning_rate": "learning rate {}",
    "schedule.name": "{} schedule",
}


def held_and_differing(variants: Sequence[Variant]) -> tuple[list[str], list[str]]:
    """Say what variants have in common, and in what they differ that is not compared."""
    trained = [variant for variant in variants if not variant.is_external]
    settings = [variant.settings for variant in trained]
    held = [
        text.format(plain(shown(settings[0][key])))
        for key, text in _HELD.items()
        if settings
        and key in settings[0]
        and all(other.get(key) == settings[0][key] for other in settings)
    ]
    keys = {key for other in settings[1:] for key in differing_keys(settings[0], other)}
    differs = [_values(key, trained) for key in sorted(keys) if not COMPARED.fullmatch(key)]
    if trained and not any(key.startswith(LAYERS) for key in keys):
        layers = trained[0].layers
        held += [] if layers == "uniform" else [f"layers {plain(layers)}"]
    rows = {plain(v.label): [run.row for run in v.by_seed().values()] for v in trained}
    alike, unlike = numerics_compared(rows)
    held += alike
    differs += unlike
    if external := [plain(variant.label) for variant in variants if variant.is_external]:
        differs.append(f"the training, which kvlab does not know: {', '.join(external)}")
    counts = [variant.result["num_parameters"] for variant in variants]
    spread = max(counts) / min(counts) - 1
    if spread > PARAMETERS_TOLERANCE:
        differs.append(f"parameters: from {min(counts):,} to {max(counts):,}")
    elif len(variants) > 1:
        held.append(f"parameters within {100 * spread:.2g} %")
    seeds = [variant.result["seeds"] for variant in variants]
    if not differs and len(variants) > 1 and seeds == seeds[:1] * len(seeds):
        held.append("seeds, which give the order of the data, and every other setting")
    if any(key.startswith(LAYERS) for key in keys):  # compared, but a name says too little
        differs.insert(0, _arrangements(trained))
    return held, differs


def _arrangements(variants: Sequence[Variant]) -> str:
    """Say how the layers of variants are arranged, each arrangement once."""
    having: dict[str, list[str]] = {}
    for variant in variants:
        given = {key: v for key, v in variant.settings.items() if v != UNIFORM.get(key, v)}
        name = plain(given.pop(f"{LAYERS}name", "uniform"))
        text = ", ".join(f"{k.removeprefix(LAYERS)}={plain(shown(v))}" for k, v in given.items())
        having.setdefault(f"{name} with {text}" if text else name, []).append(variant.label)
    listed = "; ".join(f"{text} ({', '.join(labels)})" for text, labels in having.items())
    return f"arrangement of the layers (layers): {listed}"


def _values(key: str, variants: Sequence[Variant]) -> str:
    """Say which values a setting has, and which variants have each."""
    having: dict[str, list[str]] = {}
    for variant in variants:
        having.setdefault(plain(shown(variant.settings.get(key))), []).append(variant.label)
    listed = (f"{value} ({', '.join(labels)})" for value, labels in having.items())
    return f"{plain(label(key), 120)}: {', '.join(listed)}"


def numerics_compared(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[list[str], list[str]]:
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
    for key, (name, _) in NUMERICS.items():
        by_variant = {label: _recorded(some, key) for label, some in runs.items()}
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
        [number] = _recorded([row], "num_threads")
        by_number.setdefault(number, []).append(str(row["run_name"]))
    if len(by_number) == 1:
        return next(iter(by_number))
    return "; ".join(f"{number} ({', '.join(names)})" for number, names in by_number.items())


def _recorded(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    found = {_in_words((row.get("trained_with") or {}).get(key)) for row in rows}
    return sorted(found)


def _in_words(value: Any) -> str:
    if value is None:
        return _NOT_RECORDED
    # A run is anybody's: without markup, but for the arrow of a change.
    return re.sub(r"[^\w .,:;+=/()%>-]", "?", " ".join(shown(value).split()))[:200]
