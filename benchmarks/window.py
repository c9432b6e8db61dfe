"""What a window saves in training: forward and backward pass of an attention, causal or windowed.

    OMP_NUM_THREADS=1 python -m benchmarks.window
    python -m benchmarks.window --tokens 1024 4096 --windows 128 --device cuda

PyTorch's fused causal kernel (`modeling.attention.kernel.attend`) and blocks of queries
(`modeling.attention.blocks.attend_windowed`) take turns in one process; each pass holds the same
number of tokens, so that times can be compared between lengths. Medians, and the median over
rounds of the ratio in a round. On a single CPU thread its CPU time is taken, which a busy machine
disturbs less. Writes benchmarks/results/<date>-window.md and .json, and prints the
page.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    Ratio,
    begin,
    parser_of,
    positive,
    say,
    seconds_in_turn,
    table,
    write,
)

if TYPE_CHECKING:
    from torch import Tensor


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", nargs="+", type=positive, default=[256, 1024, 4096])
    parser.add_argument("--windows", nargs="+", type=positive, default=[64, 128, 256])
    parser.add_argument("--dtypes", nargs="+", help="float32, and bfloat16 where it is native")
    parser.add_argument("--tokens-per-pass", type=positive, default=4096)
    parser.add_argument("--heads", type=positive, default=8, help="of queries and of keys")
    parser.add_argument("--width", type=positive, default=24, help="of a head")
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--device", default="cpu", help="cuda is untested")
    parser.add_argument("--output", type=Path, help="path of the two files, without .md and .json")
    options = parser.parse_args(arguments)
    result = begin("window", options) | {"rows": [], "ratios": []}
    import torch

    from training.machine.allocator import tune

    is_single = options.device == "cpu" and torch.get_num_threads() == 1
    result["clock"] = "CPU time" if is_single else "time"
    result["allocator"] = tune()  # as in training: page faults would hide what is measured
    for dtype in options.dtypes:
        for length in options.tokens:
            measure(options, dtype, length, result)
    page = page_of(result)
    write(page, result, options.output, "window")
    print(page)


def measure(options: argparse.Namespace, dtype: str, length: int, result: dict[str, Any]) -> None:
    """Time both attentions at one length, and add a row of `result` for each window."""
    import torch

    from modeling.attention.blocks import attend_windowed
    from modeling.attention.kernel import attend

    batch, scale = max(1, options.tokens_per_pass // length), options.width**-0.5
    shape = (batch, options.heads, length, options.width)
    device = torch.device(options.device)
    made = [torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(4)]
    heads, gradient = [x.requires_grad_() for x in made[:3]], made[3]
    causal = partial(attend, causal=True, scale=scale, fold=False)
    attends: dict[str, Callable[..., Tensor]] = {"causal": causal}
    # The whole context as a window: what the same code costs without one.
    windows = sorted({min(window, length) for window in [*options.windows, length]})
    for window in windows:
        attends[str(window)] = partial(attend_windowed, scale=scale, window=window)
    clock = time.process_time if result["clock"] == "CPU time" else time.perf_counter

    def passes(attend: "Callable[..., Tensor]") -> Any:
        return torch.autograd.grad(attend(*heads), heads, gradient)

    ways = {name: partial(passes, attend) for name, attend in attends.items()}
    times = seconds_in_turn(ways, options.rounds, device, clock)
    per_token = {
        name: [1e6 * t / (batch * length) for t in values] for name, values in times.items()
    }
    for window in windows:
        pairs = zip(times["causal"], times[str(window)], strict=True)
        ratios = [causal / windowed for causal, windowed in pairs]
        row = {"dtype": dtype, "tokens": length, "batch": batch, "window": window}
        row["causal_us_per_token"] = statistics.median(per_token["causal"])
        row["windowed_us_per_token"] = statistics.median(per_token[str(window)])
        result["rows"].append(row)
        what = f"T {length}, window {window}"
        low, value, high = min(ratios), statistics.median(ratios), max(ratios)
        result["ratios"].append(
            Ratio(f"{length}", dtype, what, "causal", "windowed", value, low, high)
        )
        say(f"{dtype}, {what}: {value:.2f}")


def page_of(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    import torch

    facts, options = result["machine"], result["options"]
    rows = []
    for row, ratio in zip(result["rows"], result["ratios"], strict=True):
        shorter = [
            other["windowed_us_per_token"]
            for other in result["rows"]
            if (other["dtype"], other["window"]) == (row["dtype"], row["window"])
            and row["tokens"] == 4 * other["tokens"]
            and other["tokens"] >= 4 * other["window"]  # nearly all queries have a full window
        ]
        growth = f"{row['windowed_us_per_token'] / shorter[0]:.2f}" if shorter else ""
        rows.append(
            [
                row["dtype"],
                f"{row['tokens']:,}",
                f"{row['window']:,}",
                f"{row['causal_us_per_token']:.2f}",
                f"{row['windowed_us_per_token']:.2f}",
                f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                growth,
            ]
        )
    heads = ["dtype", "T", "window", "causal", "windowed", "causal / windowed", "over T / 4"]
    where = facts["gpu"] if options["device"] != "cpu" else facts["processor"]
    parts = [
        f"# Window layers, {result['date']}",
        f"benchmarks/window.py on {where}, {facts['cpus']} CPUs, {facts['capability']}, "
        f"{torch.get_num_threads()} threads, torch {result['versions']['torch']}; load average "
        f"{facts['load_average']} at the start; {result['allocator']}; {options['heads']} heads of "
        f"width {options['width']}, {options['tokens_per_pass']:,} tokens a pass; "
        f"{options['rounds']} rounds. {result['clock']} of the forward and backward pass of one "
        "layer's attention without its projections, microseconds a token, medians; in brackets the "
        "range of the ratio over rounds. The last column is the time per token over that at a "
        "quarter of T: 1 where cost is in proportion to T, 4 where it is to T².",
        table(rows, heads),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
