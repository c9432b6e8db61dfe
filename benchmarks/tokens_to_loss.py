"""Validation loss against tokens, and the tokens that one recipe needs for another's final loss.

    python -m benchmarks.tokens_to_loss 'runs/adamw-*' 'runs/muon-*'

Each pattern names the runs of one recipe, its seeds. The curves are those of the validations during
training (the first `trainer.eval_tokens` tokens of the split); the last column is the whole split.
Means over seeds with their standard deviation; the fraction is per pair of runs, in sorted order.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from benchmarks.common import table
from tracking.metrics import read_metrics

Curve = list[tuple[int, float]]


def curve_of(run: Path) -> Curve:
    """Return (tokens, nats per token) of every validation during training."""
    return [
        (record["progress/tokens"], record["validation/nll_part"])
        for record in read_metrics(run / "metrics.jsonl")
        if "validation/nll_part" in record
    ]


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Return the tokens at which a curve first reaches a loss, between its points linearly."""
    for (tokens, above), (more_tokens, below) in itertools.pairwise(curve):
        if below <= loss < above:
            return tokens + (above - loss) / (above - below) * (more_tokens - tokens)
    return None


def mean_and_deviation(values: list[float], digits: int = 3) -> str:
    """Say a mean with its standard deviation; a single value alone."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def runs_of(pattern: str) -> list[Path]:
    """Return the finished runs that a pattern names, sorted."""
    path = Path(pattern)
    found = [run for run in sorted(path.parent.glob(path.name)) if (run / "summary.json").exists()]
    if not found:
        raise SystemExit(f"{pattern} names no finished run")
    return found


def main() -> None:
    """Print a table, and the fraction of tokens for every pair of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", help="pattern of run folders")
    parser.add_argument("others", nargs="+", help="patterns of run folders")
    arguments = parser.parse_args()
    recipes = {pattern: runs_of(pattern) for pattern in (arguments.baseline, *arguments.others)}
    if len({len(runs) for runs in recipes.values()}) > 1:
        raise SystemExit("every recipe needs as many finished runs (seeds) as the others")
    curves = {pattern: [curve_of(run) for run in runs] for pattern, runs in recipes.items()}
    grids = {tuple(tokens for tokens, _ in curve) for some in curves.values() for curve in some}
    if len(grids) > 1:
        raise SystemExit("the runs were not validated after the same numbers of tokens")
    rows = []
    for pattern, runs in recipes.items():
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        points = [
            mean_and_deviation([loss for _, loss in column])
            for column in zip(*curves[pattern], strict=True)
        ]
        nll = mean_and_deviation([s["validation_nll"] for s in summaries])
        perplexity = mean_and_deviation([s["validation_perplexity"] for s in summaries], 2)
        rows.append([Path(pattern).name, len(runs), *points, nll, perplexity])
    tokens = [f"{tokens:,}" for tokens, _ in curves[arguments.baseline][0]]
    headers = ["recipe", "seeds", *tokens, "end, whole split", "perplexity"]
    print(table(rows, headers))
    for pattern in arguments.others:
        pairs = list(zip(curves[arguments.baseline], curves[pattern], strict=True))
        reached = [(tokens_to_reach(other, base[-1][1]), base[-1][0]) for base, other in pairs]
        fractions = [at / last for at, last in reached if at is not None]
        if len(fractions) < len(pairs):
            print(f"{pattern}: not every run reaches the baseline's last loss")
        else:
            print(
                f"{pattern} reaches the last loss of {arguments.baseline} with "
                f"{mean_and_deviation(fractions)} of its tokens "
                f"({', '.join(f'{fraction:.3f}' for fraction in fractions)})"
            )


if __name__ == "__main__":
    main()
