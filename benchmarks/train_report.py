"""From the turns of benchmarks/train.py to rows, ratios and a Markdown page."""

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.common import Ratio, measured_on, table
from benchmarks.train_systems import COMPILED, EAGER, SYSTEMS

Row = dict[str, Any]


def make_row(facts: Row, turns: list[Row], tokens: int, flops: float, peak: float) -> Row:
    """Condense a worker's turns, one a round.

    Args:
        facts: What the worker said of itself, and which system, mode, size and dtype it is.
        turns: Its answers.
        tokens: Of a step.
        flops: Model FLOPs of a token, forward and backward.
        peak: FLOP/s of a matrix product in the same rounds.
    """
    seconds = [turn["seconds"] for turn in turns]
    speed = tokens / statistics.median(seconds)
    peak_bytes = max(turn["peak_bytes"] for turn in turns)
    return facts | {
        "tokens_per_second": speed,
        "mfu": speed * flops / peak,
        "flops_per_token": flops,
        "step_seconds": statistics.median(seconds),
        "step_seconds_by_round": seconds,
        "peak_bytes": peak_bytes,
        "peak_above_import_bytes": peak_bytes - facts["import_bytes"],
        "page_faults_per_step": statistics.median(turn["page_faults"] for turn in turns),
        "last_loss": turns[-1]["loss"],
    }


def compare(rows: list[Row]) -> list[Ratio]:
    """Return kvlab's ratios to its peers, and MLA's to MHA, for every size and dtype."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["dtype"]), []).append(row)
    return [ratio for group in groups.values() for ratio in _compare_group(group)]


def _compare_group(rows: list[Row]) -> list[Ratio]:
    found: list[Ratio] = []
    modes = [mode for mode in (EAGER, COMPILED) if any(row["mode"] == mode for row in rows)]
    choices = {f"{mode} / {mode}": [r for r in rows if r["mode"] == mode] for mode in modes}
    if len(modes) > 1:
        choices["best / best"] = _best(rows)
    for attention in ("mha", "gqa", "mla"):
        for name, some in choices.items():
            ours = _of(some, f"kvlab-{attention}")
            peers = [row for row in some if _is_peer(row, attention)]
            if ours is None or not peers:
                continue
            fastest = max(peers, key=lambda row: row["tokens_per_second"])
            label = f"{attention.upper()} {{}}, {name}"
            # Its seconds over ours: the ratio of our tokens/s to its.
            what = label.format("tokens/s, fastest peer")
            found.append(_ratio(what, ours, fastest, _by_round(fastest, ours)))
            if name == "best / best":
                continue
            for key, how in (
                ("peak_above_import_bytes", "above import"),
                ("peak_bytes", "absolute"),
            ):
                leanest = min(peers, key=lambda row, key=key: row[key])
                what = label.format(f"peak memory {how}, leanest peer")
                found.append(_ratio(what, ours, leanest, [ours[key] / leanest[key]]))
    for name, some in choices.items():
        latent, mha = _of(some, "kvlab-mla"), _of(some, "kvlab-mha")
        if latent is not None and mha is not None:
            what = f"MLA / MHA step time, {name}"
            found.append(_ratio(what, latent, mha, _by_round(latent, mha)))
    return found


def _best(rows: list[Row]) -> list[Row]:
    """Return each system's faster mode."""
    best: dict[str, Row] = {}
    for row in rows:
        other = best.get(row["system"])
        if other is None or row["tokens_per_second"] > other["tokens_per_second"]:
            best[row["system"]] = row
    return list(best.values())


def _of(rows: Iterable[Row], system: str) -> Row | None:
    return next((row for row in rows if row["system"] == system), None)


def _is_peer(row: Row, attention: str) -> bool:
    system = SYSTEMS[row["system"]]
    return system.is_peer and system.attention == attention


def _name(row: Row) -> str:
    return f"{row['system']} {row['mode']}"


def _by_round(a: Row, b: Row) -> list[float]:
    """Return the seconds of a step of a over those of b, round by round."""
    pairs = zip(a["step_seconds_by_round"], b["step_seconds_by_round"], strict=True)
    return [seconds_a / seconds_b for seconds_a, seconds_b in pairs]


def _ratio(what: str, ours: Row, theirs: Row, values: list[float]) -> Ratio:
    return Ratio(
        size=ours["size"],
        dtype=ours["dtype"],
        what=what,
        ours=_name(ours),
        theirs=_name(theirs),
        value=statistics.median(values),
        low=min(values),
        high=max(values),
    )


def as_markdown(result: Row) -> str:
    """Write the page: how it was measured, a table for each size and dtype, the ratios."""
    options = result["options"]
    memory = (
        "the highest resident size during the timed steps, all of it and what exceeds the size "
        "after the imports"
        if options["device"] == "cpu"
        else "what PyTorch allocated on the device at most"
    )
    parts = [
        f"# A training step, {result['date']}",
        measured_on(result),
        f"Each system in a process of its own, allocator `{options['allocator']}`, optimizer "
        f"adamw, kvlab's {options['optim']}; "
        f"{options['rounds']} rounds, in each of which every system in turn does "
        f"{options['steps_per_turn']} steps while the others wait; medians. MFU: kvlab's "
        "`training_flops_per_token` of the equivalent kvlab configuration, by the matrix products "
        f"measured in the same rounds. Memory: {memory}.",
    ]
    for group in result["groups"]:
        some = [
            row
            for row in result["rows"]
            if (row["size"], row["dtype"]) == (group["size"], group["dtype"])
        ]
        parts.append(
            f"## {group['size']}, {group['dtype']}\n\nBatch {group['batch']}, context "
            f"{group['context']}, vocabulary {group['vocab_size']:,}; matrix products "
            f"{group['matmul_flops'] / 1e9:.1f} GFLOP/s; parameter counts agree within "
            f"{group['parameter_spread']:.2%}."
        )
        parts.append(_rows_table(some))
        parts += [
            f"- left out: {one['system']} {one['mode']}: {one['reason']}"
            for one in result["left_out"]
            if (one["size"], one["dtype"]) == (group["size"], group["dtype"])
        ]
    if result["ratios"]:
        parts += ["## Ratios", _ratios_table(result["ratios"])]
    return "\n\n".join(parts) + "\n"


def _rows_table(rows: list[Row]) -> str:
    headers = ["system", "mode", "parameters", "tokens/s", "ms/step", "MFU", "peak MB"]
    headers += ["above import MB", "page faults/step", "warm-up s"]
    lines = [
        [
            row["system"],
            row["mode"],
            f"{row['num_parameters']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['step_seconds'] * 1e3:,.1f}",
            f"{row['mfu']:.1%}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['peak_above_import_bytes'] / 1e6:,.0f}",
            f"{row['page_faults_per_step']:,.0f}",
            f"{row['warmup_seconds']:.1f}",
        ]
        for row in rows
    ]
    return table(lines, headers, texts=2)


def _ratios_table(ratios: list[Ratio]) -> str:
    headers = ["size", "dtype", "ratio", "of", "to", "value", "rounds"]
    lines = [
        [
            ratio.size,
            ratio.dtype,
            ratio.what,
            ratio.ours,
            ratio.theirs,
            f"{ratio.value:.3f}",
            "" if ratio.low == ratio.high else f"{ratio.low:.3f} to {ratio.high:.3f}",
        ]
        for ratio in ratios
    ]
    return table(lines, headers, texts=5)
