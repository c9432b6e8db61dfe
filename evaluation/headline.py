"""A comparison in a few sentences."""

from collections.abc import Mapping, Sequence
from typing import Any


def headline(variants: Sequence[Mapping[str, Any]]) -> str:
    """Say what a smaller cache cost, and how sure that is.

    Args:
        variants: Results of a group, as `evaluation.variants` leaves them.

    Returns:
        Sentences; empty if no perplexity was measured.
    """
    if not variants or variants[0]["perplexity"] is None:
        return ""
    sentences = [_what(variants)]
    for base in (variant for variant in variants if variant["is_baseline"]):
        compared = [v for v in variants if v["baseline"] == base["name"] and v is not base]
        for verdict in ("better", "indistinguishable", "worse", None):
            some = [v for v in compared if v["verdict"] == verdict]
            if some:
                sentences.append(_verdict(verdict, base["name"], some))
    return " ".join(sentences)


def _what(variants: Sequence[Mapping[str, Any]]) -> str:
    trained_here = [variant for variant in variants if variant["seeds"]]
    seeds = sorted({len(variant["seeds"]) for variant in trained_here})
    tokens = {variant["tokens_trained"] for variant in trained_here} - {None}
    number = " or ".join(map(str, seeds))
    trained = f", trained on {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    best = min(variants, key=lambda variant: variant["perplexity"])
    each = f", {number} {'seed' if seeds == [1] else 'seeds'}" if seeds else ""
    if len(variants) == 1:
        return f"{best['name']}{trained}{each}: perplexity {best['perplexity']:.2f}."
    lowest = f"{best['name']} has the lowest perplexity, {best['perplexity']:.2f}"
    parts = []
    if len(trained_here) == 1:
        parts = [f"1 configuration{trained}{each}"]
    elif trained_here:
        parts = [f"{len(trained_here)} configurations{trained}{each} each"]
    if outside := len(variants) - len(trained_here):
        parts.append(f"{outside} {'model' if outside == 1 else 'models'} from elsewhere")
    return f"{' and '.join(parts)}: {lowest}."


def _verdict(verdict: str | None, baseline: str, variants: Sequence[Mapping[str, Any]]) -> str:
    listed = "; ".join(_one(variant) for variant in variants)
    if verdict is None:
        return f"Too little text to say whether they differ from {baseline}: {listed}."
    what = f"Indistinguishable from {baseline}"
    if verdict != "indistinguishable":
        what = f"{verdict.capitalize()} than {baseline}"
    noises = {noise for noise, _ in map(_interval, variants) if noise}
    said = f"{what}, in perplexity with its 95 % interval"
    if len(noises) == 1:
        return f"{said} over {noises.pop()}: {listed}."
    return f"{said}: {'; '.join(_one(variant, with_noise=True) for variant in variants)}."


def _one(variant: Mapping[str, Any], *, with_noise: bool = False) -> str:
    """Name a variant with its difference and the cache that it has for it."""
    noise, interval = _interval(variant)
    over = f" over {noise}" if with_noise else ""
    sure = f" ({interval[0]:+.2f} to {interval[1]:+.2f}{over})" if interval else ""
    note = f", {variant['verdict_note']}," if variant["verdict_note"] else ""
    ratio = variant["cache_ratio_to_baseline"]
    cache = f"{ratio:.3g} {'of' if ratio <= 1 else 'times'} the cache"
    return f"{variant['name']} {variant['delta_percent']:+.2f} %{sure}{note} at {cache}"


def _interval(variant: Mapping[str, Any]) -> tuple[str, Sequence[float] | None]:
    """Return over what, and the interval: over seeds, where there are several."""
    if variant["delta_percent_ci95_seeds"]:
        return "seeds", variant["delta_percent_ci95_seeds"]
    interval = variant["delta_percent_ci95_text"]
    return "the text" if interval else "", interval


_PAIRINGS = {
    "single seed": "Single seed: a difference that another seed might turn round is not "
    "recognised; train more with -m seed=0,1,2.",
    "one model": "One model: how another training of a model from elsewhere would have come out is "
    "not known, so the interval over the text is the only one.",
    "other seeds": "Other seeds: no seed is in both, so the interval over seeds is Welch's t.",
    "common seeds": "Common seeds: the difference is over the seeds that both have.",
}


def pairing_notes(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explain how seeds were paired, where it is not simply each with its own."""
    notes = " ".join(variant["verdict_note"] or "" for variant in variants)
    return [text for key, text in _PAIRINGS.items() if key in notes]
