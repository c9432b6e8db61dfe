"""A comparison in a few sentences."""

import re
from collections.abc import Sequence

from comparing.for_reports import in_words, noise_of, sureness, too_few_documents
from comparing.labels import label, shown
from comparing.plain import plain
from comparing.statistics import EQUIVALENT, FEWEST_DOCUMENTS
from comparing.verdicts import place_of, words_of
from reporting.formats import signed, signed_percent, span
from reporting.model import Row

_MOST_SENTENCES = 2
"""More variants than these with one verdict share a sentence."""


def headline(variants: Sequence[Row], unranked: Sequence[str] = ()) -> str:
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
        for verdict in sorted({v["verdict"] for v in compared}, key=place_of):
            some = [v for v in compared if v["verdict"] == verdict]
            sentences += _sentences(verdict, base["name"], some)
    if any(map(_is_bent, variants)) and any(v["cache_ratio_to_baseline"] for v in variants):
        contexts = sorted({variant["kv_cache_context"] for variant in variants})
        at = " or ".join(f"{context:,}" for context in contexts)
        sentences.append(f"Caches are compared at {at} tokens, since windows limit some of them.")
    return " ".join(sentences)


def spoken(name: str) -> str:
    """Return a variant's name as it is said: the acronyms of attentions in capitals."""
    return re.sub(r"^(mha|mqa|gqa|mla)(?![\w-])", lambda found: found[0].upper(), name)


def _is_bent(variant: Row) -> bool:
    """Tell whether a cache grows more slowly once its windows are full."""
    curve = variant.get("kv_cache_curve")
    return curve is not None and curve["slope"] != curve["slope_beyond"]


def _what(variants: Sequence[Row], unranked: Sequence[str]) -> str:
    """Say what was compared, and which is best."""
    trained_here = [variant for variant in variants if variant["seeds"]]
    seeds = sorted({len(variant["seeds"]) for variant in trained_here})
    tokens = {variant["tokens_trained"] for variant in trained_here} - {None}
    number = in_words(*seeds)
    trained = f" trained on {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    best = min(variants, key=lambda variant: variant["perplexity"])
    if len(variants) == 1:
        each = f", {number}" if seeds else ""
        trained = trained and f",{trained}"
        return f"{spoken(best['name'])}{trained}{each}: perplexity {best['perplexity']:,.2f}."
    parts = []
    if trained_here:
        some = f"{len(trained_here)} {'variant' if len(trained_here) == 1 else 'variants'}"
        each = " each" if len(trained_here) > 1 else ""
        parts = [f"{some}{trained} with {number}{each}"]
    if external := len(variants) - len(trained_here):
        parts.append(f"{external} external {'model' if external == 1 else 'models'}")
    listed = " and ".join(parts)
    if unranked:
        return f"{listed} are not ranked, since they differ in {'; '.join(unranked)}."
    return (
        f"Of {listed}, {spoken(best['name'])} has the lowest perplexity, {best['perplexity']:,.2f}."
    )


def _sentences(verdict: str | None, base: str, variants: Sequence[Row]) -> list[str]:
    """Say what a verdict means, of each variant or of many together."""
    words, filled = words_of(verdict), [_filled(variant, base) for variant in variants]
    if len(variants) <= _MOST_SENTENCES:
        return [words.sentence.format(**one) for one in filled]
    over = {one["over"] for one in filled}
    how = f", with 95 % intervals over {over.pop()}" if len(over) == 1 and over != {""} else ""
    form = "{name} {change} ({" + ("interval" if how else "sure") + "}) with {cache}"
    items = [", ".join(filter(None, [form.format(**one), one["why"]])) for one in filled]
    return [f"{words.heading.format(**filled[0])}{how}: {'; '.join(items)}."]


def _filled(variant: Row, base: str) -> dict[str, str]:
    """Return what the words of a verdict have braces for."""
    over, interval = sureness(variant)
    if over == "seeds" and len(variant["seeds"]) > 1:
        over = in_words(len(variant["seeds"]))
    note, ratio = variant["verdict_note"], variant["cache_ratio_to_baseline"]
    verdict = variant["verdict"] or ""
    shown = span(interval, signed) if interval else ""
    sure = f"95 % interval {shown} over {over}" if interval else ""
    cache = "a cache that was not measured"
    if ratio is not None:
        same = f"{ratio:.3g} {'of' if ratio < 1 else 'times'} the cache"
        cache = "the same cache" if round(ratio, 3) == 1 else same
    return {
        "name": spoken(variant["name"]),
        "base": spoken(base),
        "change": signed_percent(variant["delta_percent"]),
        "size": f"{abs(variant['delta_percent']):,.2f} %",
        "over": over,
        "interval": shown,
        "sure": ", ".join(filter(None, [sure, note])),
        "noise": noise_of(variant),
        "cache": cache,
        "why": _why(variant),
        "verdict": verdict,
        "margin": verdict.removeprefix(EQUIVALENT),
    }


def _why(variant: Row) -> str:
    """Say what keeps a variant from being compared with its baseline, with both values."""
    return ", ".join(
        f"{plain(label(key), 120)} {plain(shown(ours))}, not {plain(shown(theirs))}"
        for key, (ours, theirs) in variant.get("unequal", {}).items()
    )


_PAIRINGS = {
    "single seed": "Single seed: another seed might turn the difference round; train three with "
    "-m seed=0,1,2.",
    "one model": "One model: how another training of an external model would have come out is not "
    "known, so the comparison is with these weights.",
    "against": "Numbers of seeds differ: each variant counts with its own.",
    "no spread": "No spread: all seeds gave one perplexity, so a difference cannot be judged.",
}


def pairing_notes(variants: Sequence[Row]) -> list[str]:
    """Explain how seeds were paired, where it is not simply each with its own."""
    notes = " ".join(variant["verdict_note"] or "" for variant in variants)
    return [text for key, text in _PAIRINGS.items() if key in notes]


def too_little_text(variants: Sequence[Row]) -> str:
    """Say why there is no interval over the text; empty where there is one."""
    few = too_few_documents(variants)
    if not few:
        return ""
    number = " or ".join(f"{count} {'document' if count == 1 else 'documents'}" for count in few)
    return (
        f"No interval over the text: the split has {number}, and an interval takes at least "
        f"{FEWEST_DOCUMENTS}; put more documents in it, or split long ones."
    )
