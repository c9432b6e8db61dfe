"""What the benchmarks of models share: sizes, what the machine is, and the command line's parts."""

import argparse
import fnmatch
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.schemas import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class Size:
    """A model size, and the batch that it is measured with."""

    overrides: tuple[str, ...]
    vocab_size: int
    batch: int
    context: int


SIZES = {
    "smoke": Size(("debug=smoke",), vocab_size=512, batch=2, context=32),
    "nano": Size(("model=nano",), vocab_size=4096, batch=8, context=256),
    "seed_35m": Size(("model=seed_35m",), vocab_size=10_000, batch=2, context=1024),
    "gpt2_124m": Size(("model=gpt2_124m",), vocab_size=50_257, batch=8, context=1024),
    "gpt2_350m": Size(("model=gpt2_350m",), vocab_size=50_257, batch=8, context=1024),
}


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


def composed_config(
    size: str, attention: str, max_position_embeddings: int, *overrides: str
) -> "TrainConfig":
    """Compose what `train_model.py` would, for a size and an attention."""
    from launch.compose import checked, composed
    from launch.schemas import TrainConfig

    shape = SIZES[size]
    arguments = [
        *shape.overrides,
        f"attention={attention}",
        f"model.vocab_size={shape.vocab_size}",
        f"model.max_position_embeddings={max_position_embeddings}",
        *overrides,
    ]
    return checked(composed("train", arguments), TrainConfig)


def chosen(parser: argparse.ArgumentParser, names: Iterable[str], patterns: list[str]) -> list[str]:
    """Return the systems that patterns of the command line choose, or end with the parser's error.

    Args:
        parser: Whose error it is if there are none.
        names: All systems.
        patterns: Names, or patterns as in a shell.
    """
    found = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
    if not found:
        parser.error(f"no system is named like {' '.join(patterns)}")
    return found


def parser_of(document: str | None) -> argparse.ArgumentParser:
    """Return a command line's parser whose help is a module's docstring."""
    description, _, rest = (document or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def begin(benchmark: str, options: argparse.Namespace) -> dict[str, Any]:
    """Check the device, fill in `options.dtypes` if need be, and return what a result begins with.

    Raises:
        SystemExit: If there is no such device.
    """
    from training.endurance.provenance import git_commit
    from training.errors import TrainingError
    from training.machine.hardware import pick_autocast_dtype, pick_device

    try:
        device = pick_device(options.device)
    except TrainingError as error:
        raise SystemExit(str(error)) from error
    if options.dtypes is None:
        is_native = pick_autocast_dtype("auto", device) is not None
        options.dtypes = ["float32", "bfloat16"] if is_native else ["float32"]
    return {
        "benchmark": benchmark,
        "date": time.strftime("%Y-%m-%d"),
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "machine": machine(),
        "versions": versions(),
        "git_commit": git_commit(ROOT),
    }


def write(page: str, result: dict[str, Any], output: Path | None, name: str) -> None:
    """Write a result so far: the next part may take long, and not arrive.

    Args:
        page: As Markdown.
        result: With `ratios`, each a `Ratio`.
        output: Path of the two files, without .md and .json.
        name: That of the files in benchmarks/results/, behind the date, where there is no `output`.
    """
    output = output or ROOT / "benchmarks/results" / f"{result['date']}-{name}"
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, default=vars, indent=1)
    output.with_name(output.name + ".md").write_text(page, encoding="utf-8")
    output.with_name(output.name + ".json").write_text(text + "\n", encoding="utf-8")


def add_common(parser: argparse.ArgumentParser, systems: Iterable[str], sizes: list[str]) -> None:
    """Add the options that benchmarks of several systems share.

    Args:
        parser: The command line's.
        systems: All that can be named.
        sizes: Keys of `SIZES` that are measured if none is named.
    """
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=sizes)
    add("--systems", nargs="+", default=["*"], help="names or patterns: " + ", ".join(systems))
    add(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16"],
        help="both where bfloat16 is native, else float32",
    )
    add("--rounds", type=positive, default=7)
    add("--steps-per-turn", type=positive, default=3)
    add("--threads", type=positive, help="PyTorch's choice if not given")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="cuda is untested")
    add("--output", type=Path, help="path of the two files, without .md and .json")


def measured_on(result: dict[str, Any]) -> str:
    """Say on what, with how many threads and with which versions a result was measured."""
    options, facts = result["options"], result["machine"]
    found = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    on_cpu = options["device"] == "cpu"
    where = facts["processor"] if on_cpu else f"{facts['gpu']} (untested there)"
    return (
        f"benchmarks/{result['benchmark']}.py at {result['git_commit']} on {where}, "
        f"{facts['cpus']} CPUs, {result['threads']} threads, {facts['capability']}; {found}. Load "
        f"average at the start {facts['load_average']}."
    )


def table(lines: Sequence[Sequence[object]], headers: list[str], texts: int = 1) -> str:
    """Format a table whose first columns are text and whose others are numbers."""
    cells = [headers, *([str(cell) for cell in line] for line in lines)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [number < texts for number in range(len(headers))]
    padded = [
        [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ]
        for line in cells
    ]
    rule = [
        f":{'-' * (width - 1)}" if left else f"{'-' * (width - 1)}:"
        for width, left in zip(widths, is_text, strict=True)
    ]
    padded.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def seconds_in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: Any,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each call by round: in each round, every call has a turn."""
    from measuring.machine import synchronize

    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + WARMUP_ROUNDS):
        for name, call in calls.items():
            synchronize(device)
            began = clock()
            call()
            synchronize(device)
            if number >= WARMUP_ROUNDS:
                times[name].append(clock() - began)
    return times


def positive(text: str) -> int:
    """Read a number of the command line that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def say(text: str) -> None:
    """Print progress where it does not mix with the page."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on in addition to the versions."""
    import torch

    from measuring.machine import cpu_count, processor_name

    return {
        "processor": processor_name(),
        "cpus": cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "preloaded": os.environ.get("LD_PRELOAD"),
    }


def versions() -> dict[str, str]:
    """Return the versions of what is compared."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "litgpt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
