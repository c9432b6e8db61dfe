"""Families of variants whose differences are judged together, and how sure these are, in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from comparing.differences import percent
from comparing.noise import PAIRED, WELCH, Noise, estimate
from comparing.plain import plain
from comparing.recipes import unequal
from comparing.simultaneous import MOST_SEEDS
from comparing.statistics import UNRESOLVED, equivalent
from comparing.variant import Variant


@dataclasses.dataclass(frozen=True)
class Family:
    """A baseline with the variants that may be ranked against it, all trained here and scored.

    Args:
        baseline: What they are compared with; None where there is none.
        variants: With the baseline.
        noise: What the seed does to them; None where no variant has two seeds that differ.
    """

    baseline: Variant | None
    variants: list[Variant]
    noise: Noise | None

    def has(self, variant: Variant) -> bool:
        """Return whether a variant is one of them."""
        return any(one is variant for one in self.variants)


def families_of(variants: Sequence[Variant]) -> list[Family]:
    """Return the families of variants that have their baselines; those without are one."""
    scored = [v for v in variants if not v.is_external and v.runs[0].windows is not None]
    found = []
    for base in [*(v for v in scored if v.is_baseline), None]:
        # One that is compared with an external model has no baseline with seeds.
        of_base = (
            (v, None if v.baseline and v.baseline.is_external else v.baseline) for v in scored
        )
        own = [v for v, its in of_base if its is base and v is not base]
        if first := base or next(iter(own), None):
            rest = [v for v in own if v is not first and not unequal(v.runs[0], first.runs[0])]
            found.append(Family(base, [first, *rest], _noise([first, *rest])))
    return found


def noise_of_pair(one: Variant, other: Variant, families: Sequence[Family]) -> Noise | None:
    """Return the noise of two variants: that of their family, else their own; None if not known."""
    for family in families:
        if family.has(one) and family.has(other):
            return family.noise
    pair = (one, other)
    if any(v.is_external or v.runs[0].windows is None for v in pair):
        return None
    return None if unequal(one.runs[0], other.runs[0]) else _noise(pair)


def _noise(variants: Sequence[Variant]) -> Noise | None:
    return estimate(
        {
            variant.label: {seed: run.row["nll"] for seed, run in variant.by_seed().items()}
            for variant in variants
        }
    )


def how_sure(
    families: Sequence[Family], pairs: Sequence[Mapping[str, Any]], margin: float
) -> list[str]:
    """Say how intervals over seeds were made, and what so many seeds can show.

    Args:
        families: Those of the variants, which have their results.
        pairs: Differences of every two.
        margin: Relative difference of perplexity up to which two models are equivalent.
    """
    said = []
    for family in families:
        if len(family.variants) < 2:
            continue
        if family.noise is None:
            said.append(_unknown(family))
            continue
        said += [_method(family, family.noise), *_counts(family, family.noise)]
        if family.baseline is not None:
            rows = [v.result for v in family.variants if v is not family.baseline]
            said += _resolution(f"against {plain(family.baseline.label)}", rows)
        said += _margin(family, family.noise, margin)
    if len(pairs) > 1 or not any(family.baseline for family in families):
        said += _resolution("between pairs", pairs)
    return said


def _unknown(family: Family) -> str:
    names = _listed([v.label for v in family.variants])
    if all(len(v.by_seed()) == 1 for v in family.variants):
        return (
            f"One seed each of {names}: how far another seed would move them is not known; train "
            "three of each with -m seed=0,1,2."
        )
    return (
        f"All seeds of {names} gave the same perplexity, so there is no noise to judge a "
        "difference by; check that the runs were trained with different seeds."
    )


def _method(family: Family, noise: Noise) -> str:
    count = len(family.variants)
    intervals = {
        WELCH: "Welch's t at Sidak's level against the baseline, Games-Howell between pairs",
    }.get(noise.method, "Dunnett against the baseline, Tukey-Kramer between pairs")
    equal = "" if noise.bartlett is None else f"Bartlett's test p = {noise.bartlett:.2g}"
    moved = "" if noise.seed_effect is None else f"F test p = {noise.seed_effect:.2g}"
    if noise.method == WELCH:
        how = f"each variant has its own variance, since they differ ({equal})"
    elif noise.method == PAIRED:
        how = f"paired by seed, since a seed moves all {count} variants alike ({moved})"
    else:
        how = f"not paired ({moved}), " if moved else ""
        how += f"one variance for {count} variants" + (f" ({equal})" if equal else "")
    freedom = "" if noise.df is None else f", {noise.df} degrees of freedom"
    return (
        f"Seeds: a run's perplexity has a standard deviation of {_percent(noise.deviation)}; "
        f"{how}{freedom}. Intervals over seeds are simultaneous at 95 %: {intervals}."
    )


def _counts(family: Family, noise: Noise) -> list[str]:
    """Say which variants have other numbers of seeds, or no variance."""
    found = []
    counts = {v.label: len(v.by_seed()) for v in family.variants}
    if len(set(counts.values())) > 1:
        listed = _listed([f"{label} {n}" for label, n in counts.items()])
        found.append(f"Numbers of seeds differ ({listed}): each variant counts with its own.")
    if noise.constant:
        found.append(
            f"All seeds of {_listed(noise.constant)} gave the same perplexity, which says nothing "
            "of the noise: it is estimated from the others."
        )
    return found


def _resolution(what: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which differences these seeds show, and how many more the unresolved ones take."""
    known = [row for row in rows if row["minimum_detectable_nll"] is not None]
    if not known:
        return []
    sizes = [row["minimum_detectable_nll"] for row in known]
    ends = dict.fromkeys(_percent(size) for size in (min(sizes), max(sizes)))
    found = [f"Minimum detectable difference {what}, at 80 % power: {' to '.join(ends)}."]
    parts = []
    for row in (row for row in known if row["verdict"] == UNRESOLVED):
        seeds = row["seeds_to_resolve"]
        name = plain(row.get("name") or f"{row['variant']} less {row['against']}")
        more = f"more than {MOST_SEEDS:,}" if seeds is None else str(seeds)
        parts.append(f"{name} {more}{'' if seeds != 0 else ' (the text is what is too short)'}")
    if parts:
        listed = ", ".join(parts)
        found.append(
            f"Unresolved {what}, with the further seeds of each variant that the estimates call "
            f"for: {listed}."
        )
    return found


def _margin(family: Family, noise: Noise, margin: float) -> list[str]:
    """Say so where no interval is narrow enough to show that two variants are equivalent."""
    base, *others = family.variants
    to_first = [noise.to_baseline(v.label, base.label) for v in others]
    known = [one for one in to_first if one is not None]
    size = math.log1p(margin)
    reach = min((one.reach * one.error for one in known), default=0.0)
    if reach < size:
        return []
    needed = known[0].resolved_by(0.0, size)
    takes = f"more than {MOST_SEEDS:,}" if needed is None else str(needed)
    return [
        f"With these seeds no variant can be shown {equivalent(margin)}: the narrowest interval "
        f"reaches {_percent(reach)} to each side. To show it of equal models would need {takes} "
        "seeds each, or a larger eval.margin."
    ]


def _percent(nats: float) -> str:
    """Write nats as percent of perplexity; a model that diverged makes it endless."""
    value = percent(nats)
    return f"{float(f'{value:.2g}'):g} %" if value < 1000 else "more than 1,000 %"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(plain(name) for name in names)
