"""A comparison in a few sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from comparing.labels import label, shown
from comparing.plain import plain
from comparing.statistics import FEWEST_DOCUMENTS, FEWEST_SEEDS, kind_of


def headline(variants: Sequence[Mapping[str, Any]], unranked: Sequence[str] = ()) -> str:
    """Say what a smaller cache cost, and how sure that is.

    Args:
        variants: Results of a group, as `comparing.variants` leaves them.
        unranked: What differs that has to be equal where variants are ranked; they are not then.

    Returns:
        Sentences; empty if no perplexity was measured.
    """
    if not variants or variants[0]["perplexity"] is None:
        return ""
    sentences = [_what(variants, unranked)]
    for base in (variant for variant in variants if variant["is_baseline"]):
        compared = [v for v in variants if v["baseline"] == base["name"] and v is not base]
        for verdict in _SAID:
            some = [v for v in compared if kind_of(v["verdict"]) == verdict]
            if some:
                sentences.append(_verdict(some[0]["verdict"], base["name"], some))
    if seen := _resolution(variants):
        sentences.append(seen)
    if any(map(_is_bent, variants)) and any(v["cache_ratio_to_baseline"] for v in variants):
        contexts = sorted({variant["kv_cache_context"] for variant in variants})
        at = " or ".join(f"{context:,}" for context in contexts)
        sentences.append(f"Caches are compared at {at} tokens: windows make it depend on them.")
    return " ".join(sentences)


def _is_bent(variant: Mapping[str, Any]) -> bool:
    """Tell whether a cache grows more slowly once its windows are full."""
    curve = variant.get("kv_cache_curve")
    return curve is not None and curve["slope"] != curve["slope_beyond"]


def _what(variants: Sequence[Mapping[str, Any]], unranked: Sequence[str]) -> str:
    trained_here = [variant for variant in variants if variant["seeds"]]
    seeds = sorted({len(variant["seeds"]) for variant in trained_here})
    tokens = {variant["tokens_trained"] for variant in trained_here} - {None}
    number = " or ".join(map(str, seeds))
    trained = f", trained on {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    best = min(variants, key=lambda variant: variant["perplexity"])
    each = f", {number} {'seed' if seeds == [1] else 'seeds'}" if seeds else ""
    if len(variants) == 1:
        return f"{best['name']}{trained}{each}: perplexity {best['perplexity']:,.2f}."
    said = f"{best['name']} has the lowest perplexity, {best['perplexity']:,.2f}"
    if unranked:
        said = f"not ranked, since they differ in {'; '.join(unranked)}"
    parts = []
    if len(trained_here) == 1:
        parts = [f"1 configuration{trained}{each}"]
    elif trained_here:
        parts = [f"{len(trained_here)} configurations{trained}{each} each"]
    if external := len(variants) - len(trained_here):
        parts.append(f"{external} external {'model' if external == 1 else 'models'}")
    return f"{' and '.join(parts)}: {said}."


_SAID = {
    "better": "Better than {}",
    "equivalent": "Equivalent to {}",
    "worse": "Worse than {}",
    "unresolved": "Unresolved against {}",
    "too few seeds": f"Too few seeds to tell from {{}} (it takes {FEWEST_SEEDS} on each side)",
    "not comparable": "Not comparable with {}",
    None: f"Too little text to tell from {{}} (it takes {FEWEST_DOCUMENTS} documents)",
}
"""What a verdict says, in the order in which verdicts are given."""


def _verdict(verdict: str | None, baseline: str, variants: Sequence[Mapping[str, Any]]) -> str:
    what = _SAID[kind_of(verdict)].format(baseline)
    if verdict and verdict.startswith("equivalent"):
        what += verdict.removeprefix("equivalent")
    noises = {noise for noise, _ in map(_interval, variants) if noise}
    if not noises:
        return f"{what}: {'; '.join(_one(variant) for variant in variants)}."
    said = f"{what}, in perplexity with its 95 % interval"
    if len(noises) == 1:
        listed = "; ".join(_one(variant) for variant in variants)
        return f"{said} over {noises.pop()}: {listed}."
    return f"{said}: {'; '.join(_one(variant, with_noise=True) for variant in variants)}."


def _resolution(variants: Sequence[Mapping[str, Any]]) -> str:
    """Say how large a difference these seeds show; empty where nothing is known of it."""
    found = {
        variant["name"]: variant["minimum_detectable_percent"]
        for variant in variants
        if variant.get("minimum_detectable_percent") and variant["verdict"] != "not comparable"
    }
    if not found:
        return ""
    least, most = min(found, key=lambda v: found[v]), max(found, key=lambda v: found[v])
    size = f"{found[least]:.2g} %"
    if least != most:
        size = f"{size} ({least}) to {found[most]:.2g} % ({most})"
    return f"Minimum detectable difference with these seeds, at 80 % power: {size}."


def _one(variant: Mapping[str, Any], *, with_noise: bool = False) -> str:
    """Name a variant with its difference and the cache that it has for it."""
    noise, interval = _interval(variant)
    over = f" over {noise}" if with_noise else ""
    sure = f" ({interval[0]:+,.2f} to {interval[1]:+,.2f}{over})" if interval else ""
    notes = [f"{key} {ours}, not {theirs}" for key, (ours, theirs) in _unequal(variant).items()]
    note = "".join(f", {text}" for text in [variant["verdict_note"], *notes] if text)
    note += "," if note else ""
    ratio = variant["cache_ratio_to_baseline"]
    cache = "a cache that was not measured"
    if ratio is not None:
        cache = f"{ratio:.3g} {'of' if ratio <= 1 else 'times'} the cache"
    return f"{variant['name']} {variant['delta_percent']:+,.2f} %{sure}{note} at {cache}"


def _unequal(variant: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what keeps a variant from being compared with its baseline, with both values."""
    return {
        plain(label(key), 120): (plain(shown(ours)), plain(shown(theirs)))
        for key, (ours, theirs) in variant.get("unequal", {}).items()
    }


def _interval(variant: Mapping[str, Any]) -> tuple[str, Sequence[float] | None]:
    """Return over what, and the interval: over seeds, where there are several."""
    if variant["delta_percent_ci95_seeds"]:
        return "seeds", variant["delta_percent_ci95_seeds"]
    interval = variant["delta_percent_ci95_text"]
    return "the text" if interval else "", interval


_PAIRINGS = {
    "single seed": "Single seed: another seed might turn the difference round; train three with "
    "-m seed=0,1,2.",
    "one model": "One model: how another training of an external model would have come out is not "
    "known, so the comparison is with these weights.",
    "against": "Numbers of seeds differ: each variant counts with its own.",
    "no spread": "No spread: all seeds gave one perplexity, so a difference cannot be judged.",
}


def pairing_notes(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explain how seeds were paired, where it is not simply each with its own."""
    notes = " ".join(variant["verdict_note"] or "" for variant in variants)
    return [text for key, text in _PAIRINGS.items() if key in notes]


def too_little_text(variants: Sequence[Mapping[str, Any]]) -> str:
    """Say why there is no interval over the text; empty where there is one."""
    counts = {count for v in variants if (count := v.get("documents_scored")) is not None}
    few = sorted(count for count in counts if count < FEWEST_DOCUMENTS)
    if not few:
        return ""
    number = " or ".join(f"{count} {'document' if count == 1 else 'documents'}" for count in few)
    return (
        f"No interval over the text: the split has {number}, and an interval takes at least "
        f"{FEWEST_DOCUMENTS}; put more documents in it, or split long ones."
    )
