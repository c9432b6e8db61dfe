"""Which kernel reads a cache for one query fastest, and which product multiplies few rows.

    python -m benchmarks.decode_kernels
    python -m benchmarks.decode_kernels --dtypes float32 bfloat16 --device cuda

What `decode_path: auto` (modeling/attention/kernel.py) and modeling/linear.py decide by: the ways
there are, taking turns in one process; medians in microseconds, and how many times as long the
other way takes. Several caches and weights are used in turn, more than processor caches hold.
Writes benchmarks/results/<date>-decode-kernels.md, and prints it.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    machine,
    parser_of,
    seconds_in_turn,
    table,
    versions,
)

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from torch import Tensor

    from modeling.kv_cache import CacheEntries, LayerCache

# seed_35m's: key heads, query heads of each, width of keys and of values.
HEADS = {"mha": (16, 1, 32, 32), "gqa": (4, 4, 32, 32), "mqa": (1, 16, 32, 32)}
LATENT = (1, 16, 144, 144)
WEIGHTS = ((512, 512), (512, 1376), (1376, 512), (512, 10_000), (768, 3072), (768, 50_257))
ROWS = (1, 2, 4, 8, 16, 32)
MANY_BYTES = 2**26


def medians(ways: dict[str, Callable[[], Any]], rounds: int, device: Any) -> dict[str, float]:
    """Return each way's median microseconds, one call of each per round."""
    times = seconds_in_turn(ways, rounds, device)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def kernel_rows(options: argparse.Namespace, dtype_name: str) -> list[list[Any]]:
    """Time the fused kernel and the blocks over caches that store what is computed with."""
    import torch

    from modeling.attention.kernel import prefers_blocks

    dtype, device = getattr(torch, dtype_name), torch.device(options.device)
    found = []
    for batch in options.batches:
        for name, (g, shared, d, v) in [*HEADS.items(), ("mla", LATENT)]:
            entries = {"latent": (1, d)} if name == "mla" else {"key": (g, d), "value": (g, v)}
            for context in options.contexts:
                caches = full_caches(entries, batch, context, dtype, device)
                query = torch.randn(batch, g * shared, 1, d, device=device).to(dtype)
                in_turn = itertools.cycle(caches)
                ways = {
                    "fused": partial(read_fused, in_turn, query),
                    "blocks": partial(read_blocks, in_turn, query),
                }
                taken = medians(ways, options.rounds, device)
                chosen = "blocks" if prefers_blocks(query, caches[0].view(), g) else "fused"
                values = [f"{taken['fused']:,.0f}", f"{taken['blocks']:,.0f}"]
                values.append(f"{taken['fused'] / taken['blocks']:.2f}")
                found.append([dtype_name, name, batch, f"{context:,}", *values, chosen])
    return found


def full_caches(
    entries: "CacheEntries", batch: int, context: int, dtype: Any, device: Any
) -> "list[LayerCache]":
    """Return so many caches full of noise that reading them in turn finds none of them near."""
    from modeling.kv_cache import LayerCache, StateSpec, bytes_per_token

    size = batch * context * bytes_per_token(entries, dtype)
    caches = [
        LayerCache(StateSpec(per_token=entries), batch, context, dtype, device)
        for _ in range(max(2, min(16, MANY_BYTES // size)))
    ]
    for cache in caches:
        cache.seen = context
        for tensor in cache.tensors.values():
            tensor.normal_()
    return caches


def read_fused(caches: "Iterator[LayerCache]", query: "Tensor") -> None:
    """Read the next cache by PyTorch's fused attention."""
    from benchmarks.decode_parts import read_block
    from modeling.attention.kernel import attend

    cache = next(caches)
    key, value = read_block(cache.view(), 0, cache.seen, query.dtype)
    attend(query, key, value, causal=True, scale=0.1, fold=True)


def read_blocks(caches: "Iterator[LayerCache]", query: "Tensor") -> None:
    """Read the next cache by matrix products over blocks of it."""
    from benchmarks.decode_parts import read_block
    from modeling.attention.kernel import attend_in_blocks

    cache = next(caches)
    g = next(iter(cache.tensors.values())).shape[1]
    read = partial(read_block, cache.view())
    attend_in_blocks(query, read, cache.seen, g, scale=0.1, stored_dtype=cache.dtype)


def product_rows(options: argparse.Namespace) -> list[list[Any]]:
    """Time PyTorch's own linear layer and `modeling.linear.linear`, float32."""
    import torch
    import torch.nn.functional as F

    from modeling.linear import linear

    device = torch.device(options.device)
    found = []
    for width, out in WEIGHTS:
        copies = max(2, MANY_BYTES // (4 * width * out))
        weights = itertools.cycle([torch.randn(out, width, device=device) for _ in range(copies)])
        for rows in ROWS:
            x = torch.randn(rows, width, device=device)
            ways = {
                "torch": partial(multiply, F.linear, x, weights),
                "kvlab": partial(multiply, linear, x, weights),
            }
            taken = medians(ways, options.rounds, device)
            values = [f"{taken['torch']:,.0f}", f"{taken['kvlab']:,.0f}"]
            values.append(f"{taken['torch'] / taken['kvlab']:.2f}")
            found.append([f"{width} x {out:,}", rows, *values])
    return found


def multiply(product: Any, x: "Tensor", weights: "Iterator[Tensor]") -> None:
    """Multiply x with the next weight."""
    product(x, next(weights))


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 512, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu", help="cuda is untested")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    import torch

    with torch.inference_mode():
        kernels = [row for dtype in options.dtypes for row in kernel_rows(options, dtype)]
        products = product_rows(options)
    facts = machine()
    date = time.strftime("%Y-%m-%d")
    where = facts["processor"] if options.device == "cpu" else facts["gpu"]
    heads = ["dtype", "attention", "batch", "context", "fused", "blocks", "fused / blocks", "auto"]
    shapes = ["weight, in x out", "rows", "torch", "kvlab", "torch / kvlab"]
    parts = [
        f"# Kernels of a decoding step, {date}",
        f"benchmarks/decode_kernels.py on {where}, {facts['cpus']} CPUs, {facts['capability']}, "
        f"{torch.get_num_threads()} threads, torch {versions()['torch']}; {options.rounds} rounds; "
        "microseconds, medians.",
        "## One query reads a cache of seed_35m's widths",
        table(kernels, heads, texts=2),
        "## Few rows times a weight, float32",
        table(products, shapes),
    ]
    page = "\n\n".join(parts) + "\n"
    output = options.output or ROOT / "benchmarks/results" / f"{date}-decode-kernels.md"
    output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
