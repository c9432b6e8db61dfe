"""From the rounds of benchmarks/decode.py to rows, ratios and a Markdown page."""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.common import Ratio, measured_on, table
from benchmarks.decode_systems import SYSTEMS

Row = dict[str, Any]
Point = tuple[int, int]
"""(batch, context)."""

STEP, LINEAR, ATTENTION = "step", "linear", "attention"
"""What is timed in a round; of a kvlab system also its parts alone."""
LINEAR_ALONE, BOUND = "its linear layers alone", "the bound of its attention"
OUTPUT_TOLERANCE = 1e-3
"""Largest difference of logits, relative to their standard deviation."""


@dataclass(frozen=True)
class PointRatio(Ratio):
    """Two times compared at a batch and a context."""

    batch: int
    context: int

    @property
    def point(self) -> Point:
        """Where."""
        return self.batch, self.context


def make_row(facts: Row, rounds: dict[str, list[float]], peaks: dict[str, list[float]]) -> Row:
    """Condense what was measured of a system at a point.

    Args:
        facts: Which system, size, dtype, batch and context; of a kvlab system also
            `cache_bytes`, `weight_bytes` and `attention_flops`.
        rounds: `STEP` and, of a kvlab system, `LINEAR` and `ATTENTION` -> seconds of each round.
        peaks: `bandwidth` (bytes/s) and `matmul` (FLOP/s) -> of each round.
    """
    row = dict(facts)
    for what, seconds in rounds.items():
        row[f"{what}_seconds"] = statistics.median(seconds)
        row[f"{what}_seconds_by_round"] = seconds
    if ATTENTION in rounds:
        bounds = [
            max(facts["cache_bytes"] / bandwidth, facts["attention_flops"] / matmul)
            for bandwidth, matmul in zip(peaks["bandwidth"], peaks["matmul"], strict=True)
        ]
        row["bound_seconds"] = statistics.median(bounds)
        row["bound_seconds_by_round"] = bounds
        bandwidth = statistics.median(peaks["bandwidth"])
        row["roofline_seconds"] = (facts["weight_bytes"] + facts["cache_bytes"]) / bandwidth
    return row


def compare(rows: list[Row]) -> list[PointRatio]:
    """Return every ratio: systems with their peers and with kvlab-mha, steps with their parts."""
    found: list[PointRatio] = []
    for where in dict.fromkeys(_where(row) for row in rows):
        some = {row["system"]: row for row in rows if _where(row) == where}
        for ours, row in some.items():
            if SYSTEMS[ours].is_peer:
                continue
            for theirs, other in some.items():
                kind = SYSTEMS[theirs]
                is_its_peer = kind.is_peer and kind.attention == SYSTEMS[ours].attention
                if is_its_peer or (theirs == "kvlab-mha" and ours != theirs):
                    found += _ratio("step time", (other, STEP), (row, STEP), theirs)
            found += _ratio(
                f"{STEP} time / {LINEAR_ALONE}", (row, STEP), (row, LINEAR), LINEAR_ALONE
            )
            found += _ratio(f"{ATTENTION} time / {BOUND}", (row, ATTENTION), (row, "bound"), BOUND)
    return found


def _where(row: Row) -> tuple[Any, ...]:
    return row["size"], row["dtype"], row["batch"], row["context"]


def _ratio(
    what: str, above: tuple[Row, str], below: tuple[Row, str], theirs: str
) -> list[PointRatio]:
    """Return the ratio of one time to another within rounds; nothing where one is missing."""
    series = [row.get(f"{part}_seconds_by_round", []) for row, part in (above, below)]
    if not all(series):
        return []
    values = [a / b for a, b in zip(*series, strict=True)]
    row = below[0]
    return [
        PointRatio(
            *(row["size"], row["dtype"], what, row["system"], theirs),
            *(statistics.median(values), min(values), max(values)),
            *(row["batch"], row["context"]),
        )
    ]


def as_markdown(result: Row) -> str:
    """Write the page: how it was measured, then the tables of each size and dtype."""
    options = result["options"]
    parts = [
        f"# A decoding step, {result['date']}",
        measured_on(result),
        "A step is one token for each of the b sequences, through the model and a cache of c "
        "tokens, to the logits. All systems are in one process; peers have kvlab's weights unless "
        f"the table says otherwise. {options['rounds']} rounds after two to warm up, in each of "
        f"which every system in turn does {options['steps_per_turn']} steps; a turn counts by its "
        "median step. Times are medians over rounds, ratios medians of the ratios within a round, "
        "with the smallest and the largest. Caches are filled with random numbers, and put back "
        f"between turns. Options: {_options(options)}.",
    ]
    for size, dtype in dict.fromkeys((p["size"], p["dtype"]) for p in result["points"]):
        parts += _section(result, size, dtype)
    lonely = [one for one in result["left_out"] if "batch" not in one]
    parts += [f"- left out: {one['size']}, {one['system']}: {one['reason']}" for one in lonely]
    return "\n\n".join(parts) + "\n"


def _options(options: Row) -> str:
    def text(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    shown = {k: v for k, v in options.items() if v is not None and k != "systems"}
    return ", ".join(f"{key} {text(value)}" for key, value in shown.items())


def _section(result: Row, size: str, dtype: str) -> list[str]:
    def here(one: Any) -> bool:
        return (one["size"], one["dtype"]) == (size, dtype)

    rows = [row for row in result["rows"] if here(row)]
    points = [point for point in result["points"] if here(point)]
    ratios = [r for r in result["ratios"] if (r.size, r.dtype) == (size, dtype)]
    outputs = {one["system"]: one for one in result["outputs"] if one["size"] == size}
    columns = [(point["batch"], point["context"]) for point in points]
    speeds = "; ".join(
        f"{_column((p['batch'], p['context']))}: {p['bandwidth'] / 1e9:.1f} GB/s, "
        f"{p['matmul'] / 1e9:.0f} GFLOP/s"
        for p in points
    )
    parts = [
        f"## {size}, {dtype}",
        f"Read bandwidth and matrix products in the same rounds: {speeds}.",
        "Milliseconds of a step, and the largest difference of a logit from kvlab's over the "
        "standard deviation of the logits (float32, a prompt of 24 tokens and 4 steps):",
        _steps_table(rows, columns, outputs),
        "How many times as long a step of the other takes:",
        _ratios_table([r for r in ratios if r.what == "step time"], columns),
        "Where kvlab's time goes (ms). *Linear*: the products with all weights of the blocks and "
        "the output projection alone (MLA's `kv_b_proj`, which decoding absorbs, once as it is). "
        "*Attention*: reading the caches of all layers alone, with one query per sequence. "
        "*Bound*: the larger of cache bytes / bandwidth and operations / matrix product rate. "
        "*Roofline*: bytes of weights and cache / bandwidth.",
        _parts_table(rows, ratios),
    ]
    reasons = [one for one in result["left_out"] if "batch" in one and here(one)]
    parts += [
        f"- left out: {one['system']}, {_column((one['batch'], one['context']))}: {one['reason']}"
        for one in reasons
    ]
    return parts


def _column(point: Point) -> str:
    return f"b{point[0]} c{point[1]}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.2f}"


def _steps_table(rows: list[Row], columns: list[Point], outputs: dict[str, Row]) -> str:
    at = {(row["system"], row["batch"], row["context"]): row["step_seconds"] for row in rows}
    lines = [
        [
            system,
            *(_ms(at.get((system, *p))) for p in columns),
            _output(outputs.get(system), system),
        ]
        for system in SYSTEMS
        if any(row["system"] == system for row in rows)
    ]
    return table(lines, ["system", *map(_column, columns), "logits differ by"], texts=1)


def _output(compared: Row | None, system: str) -> str:
    if compared is not None:
        return f"{compared['difference']:.1e}"
    return "" if SYSTEMS[system].has_same_weights else "own weights"


def _ratios_table(ratios: list[PointRatio], columns: list[Point]) -> str:
    lines = []
    for ours, theirs in dict.fromkeys((r.ours, r.theirs) for r in ratios):
        cells = {
            r.point: f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})"
            for r in ratios
            if (r.ours, r.theirs) == (ours, theirs)
        }
        lines.append([theirs, ours, *(cells.get(point, "") for point in columns)])
    return table(lines, ["step of", "over that of", *map(_column, columns)], texts=2)


def _parts_table(rows: list[Row], ratios: list[PointRatio]) -> str:
    headers = ["point", "system", "step", "linear", "step / linear", "attention", "bound"]
    headers += ["attention / bound", "roofline", "step / roofline"]
    lines = []
    for row in rows:
        if "roofline_seconds" not in row:
            continue
        point, system = (row["batch"], row["context"]), row["system"]
        of = {r.theirs: f"{r.value:.2f}" for r in ratios if (r.ours, r.point) == (system, point)}
        step, linear, attention, bound, roofline = (
            _ms(row[f"{key}_seconds"]) for key in (STEP, LINEAR, ATTENTION, "bound", "roofline")
        )
        share = f"{row['step_seconds'] / row['roofline_seconds']:.2f}"
        line = [_column(point), system, step, linear, of.get(LINEAR_ALONE, ""), attention, bound]
        lines.append([*line, of.get(BOUND, ""), roofline, share])
    return table(lines, headers, texts=2)
