"""Two measurements compared, and what the project aims at."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """Two rows compared; for times and speeds the median over rounds of the ratio in a round."""

    size: str
    dtype: str
    what: str
    ours: str
    theirs: str
    value: float
    low: float
    """The smallest of any round; `value` itself where there is only one number."""
    high: float
    aim: str
    """`>= x` or `<= x`; empty where the project has none."""

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None without one."""
        if not self.aim:
            return None
        comparison, bound = self.aim.split()
        return self.value >= float(bound) if comparison == ">=" else self.value <= float(bound)


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with its `ratios` as plain values."""
    ratios = [vars(ratio) | {"is_met": ratio.is_met} for ratio in result["ratios"]]
    return result | {"ratios": ratios}


def met(ratio: Ratio) -> str:
    """Say whether the aim is reached, for a table."""
    return {True: "yes", False: "no", None: ""}[ratio.is_met]
