"""From the rounds of benchmarks/decode.py to rows, ratios and a Markdown page."""

import fnmatch
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from benchmarks.decode_systems import SYSTEMS
from benchmarks.ratios import Ratio, met

Row = dict[str, Any]
Point = tuple[int, int]
"""(batch, context)."""

STEP, LINEAR, ATTENTION = "step", "linear", "attention"
"""What is timed in a round; of a kvlab system also its parts alone."""
LINEAR_ALONE, BOUND = "its linear layers alone", "the bound of its attention"
OUTPUT_TOLERANCE = 1e-3
"""Of logits, relative to their standard deviation."""

AIMED_SIZE, AIMED_DTYPE = "seed_35m", "float32"


@dataclass(frozen=True)
class Aim:
    """What a ratio should be, at every point or at some."""

    ours: str
    """A system, or a pattern."""
    theirs: str
    bound: str
    batch: int | None = None
    context: int | None = None

    def applies(self, ours: str, theirs: str, point: Point) -> bool:
        """Say whether it speaks of these two at this point."""
        batch, context = point
        return (
            fnmatch.fnmatchcase(ours, self.ours)
            and theirs == self.theirs
            and self.batch in (None, batch)
            and self.context in (None, context)
        )


# Of systems: their time / ours. Of parts: our step / its linear layers, our attention / its bound.
AIMS = (
    Aim("kvlab-mla", "transformers-mla", ">= 6.00", batch=1, context=4096),
    Aim("kvlab-mla", "transformers-mla", ">= 20.00", batch=8, context=4096),
    Aim("kvlab-mla", "kvlab-mha", ">= 1.00", batch=8, context=4096),
    Aim("kvlab-mha", "transformers-mha", ">= 1.40", batch=1, context=4096),
    Aim("kvlab-mha", "transformers-mha", ">= 3.00", batch=8, context=4096),
    Aim("kvlab-gqa", "transformers-gqa", ">= 1.25", context=4096),
    Aim("kvlab-mqa", "transformers-mqa", ">= 1.25", context=4096),
    Aim("kvlab-mha", "litgpt-mha", ">= 1.05"),
    Aim("kvlab-*", LINEAR_ALONE, "<= 1.15", batch=1, context=128),
    Aim("kvlab-*", BOUND, "<= 2.00"),
)


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
    """Condense what was measured of a system in a group of a point.

    Args:
        facts: Which system, size, dtype, batch, context and group; of a kvlab system also
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
    """Return every ratio: systems with their peers and with kvlab-mha, steps with their parts.

    Only what took turns is compared: where a point was measured in several groups, rows of the
    same one.
    """
    found: list[PointRatio] = []
    for where in dict.fromkeys(_where(row) for row in rows):
        some = [row for row in rows if _where(row) == where]
        names = list(dict.fromkeys(row["system"] for row in some))
        for ours in names:
            if SYSTEMS[ours].is_peer:
                continue
            same = [
                name
                for name in names
                if SYSTEMS[name].is_peer and SYSTEMS[name].attention == SYSTEMS[ours].attention
            ]
            same += ["kvlab-mha"] if ours != "kvlab-mha" and "kvlab-mha" in names else []
            for theirs in same:
                found += _ratio(some, "step time", (theirs, STEP), (ours, STEP), ours, theirs)
            parts = ((STEP, LINEAR, LINEAR_ALONE), (ATTENTION, "bound", BOUND))
            for above, below, label in parts:
                what = f"{above} time / {label}"
                found += _ratio(some, what, (ours, above), (ours, below), ours, label)
    return found


def _where(row: Row) -> tuple[Any, ...]:
    return row["size"], row["dtype"], row["batch"], row["context"]


def _ratio(
    rows: list[Row],
    what: str,
    above: tuple[str, str],
    below: tuple[str, str],
    ours: str,
    theirs: str,
) -> list[PointRatio]:
    """Return the ratio of one to another, within the rounds of the groups that have both."""
    values = []
    for group in dict.fromkeys(row["group"] for row in rows):
        of = {row["system"]: row for row in rows if row["group"] == group}
        series = [
            of.get(system, {}).get(f"{part}_seconds_by_round", [])
            for system, part in (above, below)
        ]
        if all(series):
            values += [a / b for a, b in zip(*series, strict=True)]
    if not values:
        return []
    size, dtype, batch, context = _where(rows[0])
    aims = [
        aim.bound
        for aim in AIMS
        if (size, dtype) == (AIMED_SIZE, AIMED_DTYPE)
        and aim.applies(ours, theirs, (batch, context))
    ]
    return [
        PointRatio(
            size=size,
            dtype=dtype,
            what=what,
            ours=ours,
            theirs=theirs,
            value=statistics.median(values),
            low=min(values),
            high=max(values),
            aim=aims[0] if aims else "",
            batch=batch,
            context=context,
        )
    ]


def as_markdown(result: Row) -> str:
    """Write the page: how it was measured, the aims, then the tables of each size and dtype."""
    options, machine = result["options"], result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    on_cpu = options["device"] == "cpu"
    where = machine["processor"] if on_cpu else f"{machine['gpu']} (untested there)"
    parts = [
        f"# A decoding step, {result['date']}",
        f"benchmarks/decode.py at {result['git_commit']} on {where}, {machine['cpus']} CPUs, "
        f"{result['threads']} threads, {machine['capability']}; {versions}. Load average at the "
        f"start {machine['load_average']}.",
        "A step is one token for each of the b sequences, through the model and a cache of c "
        "tokens, to the logits. All systems are in one process; peers have kvlab's weights unless "
        f"the table says otherwise. {options['rounds']} rounds after two to warm up, in each of "
        f"which every system in turn does {options['steps_per_turn']} steps; a turn counts by its "
        "median step. Times are medians over rounds, ratios medians of the ratios within a round, "
        "with the smallest and the largest. Caches are filled with random numbers, and put back "
        f"between turns. Options: {_options(options)}.",
    ]
    aimed = [ratio for ratio in result["ratios"] if ratio.aim]
    if aimed:
        parts += ["## Aims", _aims_table(aimed)]
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
        f"{p['matmul'] / 1e9:.0f} GFLOP/s" + (f", {p['groups']} groups" if p["groups"] > 1 else "")
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
        _parts_table(rows, ratios, columns),
    ]
    reasons = [one for one in result["left_out"] if "batch" in one and here(one)]
    parts += [
        f"- left out: {one['system']}, {_column((one['batch'], one['context']))}: {one['reason']}"
        for one in reasons
    ]
    return parts


def _column(point: Point) -> str:
    return f"b{point[0]} c{point[1]}"


def _pooled(rows: Iterable[Row], system: str, point: Point, key: str) -> float | None:
    """Return the median over the rounds of all groups that had the system."""
    values: list[float] = []
    for row in rows:
        if row["system"] == system and (row["batch"], row["context"]) == point:
            values += row.get(f"{key}_seconds_by_round", [])
    return statistics.median(values) if values else None


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.2f}"


def _table(lines: list[list[str]], headers: list[str], texts: int) -> str:
    """Format a table whose first columns are text and whose others are numbers."""
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(lines, headers, "github", disable_numparse=True, colalign=align)


def _steps_table(rows: list[Row], columns: list[Point], outputs: dict[str, Row]) -> str:
    lines = []
    for system in (name for name in SYSTEMS if any(row["system"] == name for row in rows)):
        times = [_ms(_pooled(rows, system, point, STEP)) for point in columns]
        lines.append([system, *times, _output(outputs.get(system), system)])
    headers = ["system", *map(_column, columns), "logits differ by"]
    return _table(lines, headers, texts=1)


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
    return _table(lines, ["step of", "over that of", *map(_column, columns)], texts=2)


def _parts_table(rows: list[Row], ratios: list[PointRatio], columns: list[Point]) -> str:
    headers = ["point", "system", "step", "linear", "step / linear", "attention", "bound"]
    headers += ["attention / bound", "roofline", "step / roofline"]
    lines = []
    for point in columns:
        for system in (name for name in SYSTEMS if not SYSTEMS[name].is_peer):
            step = _pooled(rows, system, point, STEP)
            own = [
                row
                for row in rows
                if row["system"] == system and (row["batch"], row["context"]) == point
            ]
            if step is None or "roofline_seconds" not in own[0]:
                continue
            of = {
                r.theirs: f"{r.value:.2f}" for r in ratios if r.ours == system and r.point == point
            }
            roofline = statistics.median(row["roofline_seconds"] for row in own)
            linear, attention, bound = (
                _ms(_pooled(rows, system, point, key)) for key in (LINEAR, ATTENTION, "bound")
            )
            line = [_column(point), system, _ms(step), linear, of.get(LINEAR_ALONE, "")]
            line += [attention, bound, of.get(BOUND, "")]
            lines.append([*line, _ms(roofline), f"{step / roofline:.2f}"])
    return _table(lines, headers, texts=2)


def _aims_table(ratios: list[PointRatio]) -> str:
    lines = []
    for ratio in ratios:
        if ratio.what == "step time":
            what = f"{ratio.theirs} / {ratio.ours}, step time"
        else:
            what = f"{ratio.ours}, {ratio.what}"
        rounds = f"{ratio.low:.2f} to {ratio.high:.2f}"
        where = f"{ratio.size} {_column(ratio.point)}"
        lines.append([what, where, f"{ratio.value:.2f}", rounds, ratio.aim, met(ratio)])
    headers = ["ratio", "where", "value", "rounds", "aim", "met"]
    return tabulate(lines, headers, "github", disable_numparse=True)
