"""How often the interval over documents holds the truth, on documents of a real text.

    python benchmarks/coverage.py reports/NAME/documents.json

The documents that a report scored stand for all documents there are, and their nats per token for
the truth. From them texts of some documents are drawn again and again, and each gets an interval:
the one that reports give, and for comparison the bootstrap over documents by percentiles and by
BCa. An interval of 95 % should hold the truth in 95 of 100 texts. For every run, and for every
difference of two runs, paired by document. With `--subset FROM:TO` only some documents stand for
all.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from comparing.statistics import CONFIDENCE, text_interval  # noqa: E402

Numbers = npt.NDArray[np.float64]
_RESAMPLES = 999


def bootstrap_intervals(
    nats: Numbers, tokens: Numbers, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the percentile and the BCa interval of nats per token, documents drawn together."""
    from scipy.stats import bootstrap

    def per_token(nats: Numbers, tokens: Numbers, axis: int) -> Numbers:
        return nats.sum(axis=axis) / tokens.sum(axis=axis)

    found = {}
    for name in ("percentile", "BCa"):
        interval = bootstrap(
            (nats, tokens),
            per_token,
            paired=True,
            n_resamples=_RESAMPLES,
            confidence_level=CONFIDENCE,
            method=name,
            rng=rng,
        ).confidence_interval
        found[name] = float(interval.low), float(interval.high)
    return found


def coverage(nats: Numbers, tokens: Numbers, documents: int, trials: int) -> dict[str, float]:
    """Return the share of drawn texts whose interval holds the truth, by kind of interval.

    Args:
        nats: Of each document that there is [n].
        tokens: Of each [n].
        documents: That a text has.
        trials: Texts to draw.
    """
    rng = np.random.default_rng(0)
    truth = float(nats.sum() / tokens.sum())
    held: dict[str, list[bool]] = {}
    for _ in range(trials):
        drawn = rng.integers(len(nats), size=documents)
        reported = text_interval(nats[drawn], tokens[drawn])
        if reported is None:
            raise SystemExit(f"a text of {documents} documents has no interval")
        others = bootstrap_intervals(nats[drawn], tokens[drawn], rng)
        for name, interval in {"reported": reported, **others}.items():
            held.setdefault(name, []).append(interval[0] <= truth <= interval[1])
    return {name: float(np.mean(each)) for name, each in held.items()}


def numbers_of(
    scored: dict[str, dict[str, list[float]]], subset: slice
) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Yield a name, nats and tokens by document of every run and every difference of two."""
    tokens = {name: np.array(found["tokens"][subset], float) for name, found in scored.items()}
    nats = {name: np.array(found["nll"][subset], float) for name, found in scored.items()}
    for name in scored:
        yield name, nats[name], tokens[name]
    for one, other in itertools.combinations(scored, 2):
        if np.array_equal(tokens[one], tokens[other]):
            yield f"{one} - {other}", nats[one] - nats[other], tokens[one]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="documents.json of a report")
    parser.add_argument("--documents", nargs="+", type=int, default=[12, 31, 60])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--subset", default=":", help="FROM:TO, of the documents that there are")
    arguments = parser.parse_args()
    first, last = (int(end) if end else None for end in arguments.subset.split(":"))
    rows = []
    for path in arguments.reports:
        scored = json.loads(path.read_text())
        for name, nats, tokens in numbers_of(scored, slice(first, last)):
            for documents in arguments.documents:
                shares = coverage(nats, tokens, documents, arguments.trials)
                cells = [f"{share:.3f}" for share in shares.values()]
                rows.append([name, len(nats), documents, *cells])
    headers = ["number", "documents", "drawn", "reported", "percentile", "BCa"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
