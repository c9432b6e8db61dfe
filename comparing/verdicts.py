"""Verdicts in words: what each means, says and looks like. The only place that has them."""

from dataclasses import dataclass

from comparing.statistics import (
    BETTER,
    EQUIVALENT,
    FEWEST_DOCUMENTS,
    FEWEST_SEEDS,
    NOT_COMPARABLE,
    TOO_FEW_SEEDS,
    UNRESOLVED,
    WORSE,
    kind_of,
)

VERDICT_MEANING = (
    "better or worse where both intervals leave out 0, equivalent where both lie within the margin "
    "(eval.margin), else unresolved; none is given below "
    f"{FEWEST_SEEDS} seeds; not comparable where the trainings had to be equal and are not"
)
"""What a reader of a table has to know of its verdicts."""


@dataclass(frozen=True)
class Verdict:
    """Words for a verdict; braces are filled by `reporting.headline`.

    Attributes:
        sentence: For one variant.
        heading: Before several variants that share the verdict.
        tone: "good", "bad", "even" or "": how it is coloured.
    """

    sentence: str
    heading: str
    tone: str = ""


_VERDICTS: dict[str | None, Verdict] = {
    BETTER: Verdict(
        "{name}'s perplexity is {size} below {base}'s ({sure}) with {cache}.",
        "Better than {base}",
        "good",
    ),
    EQUIVALENT: Verdict(
        "{name} is {verdict} to {base} ({change}, {sure}) with {cache}.",
        "Equivalent to {base}{margin}",
        "even",
    ),
    UNRESOLVED: Verdict(
        "{name} cannot be distinguished from {base} within the noise of {noise} ({change}, {sure}) "
        "with {cache}.",
        "Unresolved against {base}",
    ),
    WORSE: Verdict(
        "{name}'s perplexity is {size} above {base}'s ({sure}) with {cache}.",
        "Worse than {base}",
        "bad",
    ),
    TOO_FEW_SEEDS: Verdict(
        f"{{name}} measures {{change}} against {{base}} ({{sure}}) with {{cache}}, from too few "
        f"seeds for a verdict ({FEWEST_SEEDS} on each side are needed).",
        f"Too few seeds for a verdict against {{base}} ({FEWEST_SEEDS} on each side are needed)",
    ),
    NOT_COMPARABLE: Verdict(
        "{name} measures {change} against {base} ({sure}) with {cache}, but is not comparable: "
        "{why}.",
        "Not comparable with {base}",
    ),
    None: Verdict(
        "{name} measures {change} against {base} with {cache}, on too little text for a verdict "
        f"({FEWEST_DOCUMENTS} documents are needed).",
        f"Too little text for a verdict against {{base}} ({FEWEST_DOCUMENTS} documents are needed)",
    ),
}
# Of a report that an older kvlab wrote.
_OTHER = Verdict(
    "{name} measures {change} against {base} ({sure}) with {cache}: {verdict}.",
    "{verdict}, against {base}",
)


def words_of(verdict: str | None) -> Verdict:
    """Return the words of a verdict, whatever its margin."""
    return _VERDICTS.get(kind_of(verdict), _OTHER)


def place_of(verdict: str | None) -> int:
    """Return where a verdict stands in the order in which they are reported."""
    known, kind = [*_VERDICTS], kind_of(verdict)
    return known.index(kind) if kind in known else len(known)
