"""Numbers as a reader should see them; `comparing.labels` has the words."""

from collections.abc import Callable, Sequence


def count(value: float) -> str:
    """Write a whole number in groups of three digits."""
    return f"{value:,.0f}"


def perplexity(value: float) -> str:
    """Write a perplexity with two decimals, a large one with none."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def ratio(value: float) -> str:
    """Write a ratio with three decimals, a small one with two digits."""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+,.2f}"


def signed_percent(value: float) -> str:
    """Write a difference in percent with its sign."""
    return f"{value:+,.2f} %"


def span(interval: Sequence[float], show: Callable[[float], str]) -> str:
    """Write an interval."""
    return " to ".join(map(show, interval))


def duration(seconds: float) -> str:
    """Write a time in the unit that fits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def task_number(value: float) -> str:
    """Write a task's metric with digits that fit its size."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4f}"
