"""How fast, and in how much memory, a training step is: kvlab's attentions and other frameworks.

    pip install -r requirements.txt && pip install --no-deps -r requirements-bench.txt
    python -m benchmarks.train --rounds 7
    python -m benchmarks.train --sizes nano --systems '*-mha' '*-mla' --allocator tuned
    python -m benchmarks.train --sizes seed_35m --systems '*-mla' --output benchmarks/results/mla

All processes of a size and dtype stay in memory: at nano each takes up to 1 GB, at seed_35m 2 to 3.
The same dimensions, vocabulary, batch, random tokens and number of parameters for all; eager and
compiled; float32 and, where it is native, bfloat16 (autocast over float32 weights). Every system
lives in a process of its own. In each round every process does a few steps while the others wait,
so that a busy machine slows all alike; medians over rounds, and ratios within a round. A system
that cannot run (its package is missing, say) is left out, and the report says why.

All use AdamW, also kvlab, whose default is Muon (--optim muon).

--allocator says whose memory settings are measured:

    as-started  kvlab with what train_model.py sets, the others with glibc's defaults
    tuned       all with MALLOC_MMAP_MAX_=0 and the like in their environment
    default     all with glibc's defaults (BENCHMARK_ALLOCATOR=default)

Model FLOPs utilisation divides kvlab's `training_flops_per_token` (for a peer, of the kvlab
configuration with its dimensions) by the speed of matrix products in that dtype, measured in the
same rounds. Writes a Markdown page and JSON to benchmarks/results/, and prints the page.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

from benchmarks.common import (
    SIZES,
    add_common,
    begin,
    chosen,
    composed_config,
    parser_of,
    positive,
    say,
    write,
)
from benchmarks.peers import query_latent_width
from benchmarks.train_report import as_markdown, compare, make_row
from benchmarks.train_systems import (
    COMPILED,
    EAGER,
    SYSTEMS,
    Job,
)
from benchmarks.train_worker import (
    ALLOCATORS,
    MATMUL,
    Worker,
    WorkerError,
    serve,
)

# Apart from compiling, caches, memory pools and the optimizer's state need a few steps.
WARMUP_STEPS = 3


def make_job(options: argparse.Namespace, size: str, dtype: str, system: str) -> Job:
    """Compose what a system trains, the way `train_model.py` does; mode eager."""
    from modeling.accounting import match_to_mha
    from modeling.arrangement import layer_configs

    shape, kind = SIZES[size], SYSTEMS[system]
    context = options.context or shape.context
    config = composed_config(size, kind.attention, context, f"optim={options.optim}")
    model = config.model
    if kind.has_query_latent:
        width = query_latent_width(dataclasses.asdict(model))
        model = dataclasses.replace(model, attention=model.attention | {"q_lora_rank": width})
    layer_configs(model)
    if config.match == "params":
        model = match_to_mha(model)
    return Job(
        system=system,
        size=size,
        dtype=dtype,
        mode=EAGER,
        device=options.device,
        batch=options.batch or shape.batch,
        context=context,
        threads=options.threads,
        warmup_steps=options.warmup_steps,
        model=dataclasses.asdict(model),
        optim=dataclasses.asdict(config.optim),
        schedule=dataclasses.asdict(config.schedule),
        max_grad_norm=config.trainer.max_grad_norm,
    )


def measure(options: argparse.Namespace, size: str, dtype: str) -> dict[str, Any]:
    """Start every system of a size and dtype, and let them take turns.

    Returns:
        `rows`, `left_out`, `group` (what all have in common) and `threads`.
    """
    from modeling.accounting import training_flops_per_token
    from modeling.config import GPTConfig

    composed_jobs = [make_job(options, size, dtype, system) for system in options.systems]
    peak = dataclasses.replace(composed_jobs[0], system=MATMUL)
    jobs = [dataclasses.replace(job, mode=mode) for job in composed_jobs for mode in options.modes]
    started: list[Worker] = []
    answers: dict[Worker, list[dict[str, Any]]] = {}
    left_out: list[dict[str, str]] = []

    def leave_out(job: Job, error: WorkerError) -> None:
        if job.system == MATMUL:
            raise error
        left_out.append({**_label(job), "reason": str(error)})
        say(f"{job.system} {job.mode} is left out: {error}")

    try:
        # One after the other: compiling two at a time would only disturb both.
        for job in [peak, *jobs]:
            try:
                require_memory(started)
                worker = Worker(job, options.allocator)
            except WorkerError as error:
                leave_out(job, error)
                continue
            started.append(worker)
            answers[worker] = []
            say(f"{size} {dtype}: {job.system} {job.mode} is ready")
        for number in range(options.rounds):
            began = time.perf_counter()
            # Nobody always follows the same one.
            in_turn = list(answers)
            first = number % len(in_turn)
            for worker in in_turn[first:] + in_turn[:first]:
                try:
                    answers[worker].append(worker.turn(options.steps_per_turn))
                except WorkerError as error:
                    leave_out(worker.job, error)
                    del answers[worker]
            say(f"round {number + 1} of {options.rounds}: {time.perf_counter() - began:.1f} s")
    finally:
        for worker in started:
            worker.close()

    [matmul] = (worker for worker in answers if worker.job.system == MATMUL)
    flops = statistics.median(turn["flops"] for turn in answers[matmul])
    rows = [
        make_row(
            {**_label(worker.job), **worker.facts},
            turns,
            tokens=worker.job.batch * worker.job.context,
            flops=training_flops_per_token(GPTConfig(**worker.job.model), worker.job.context),
            peak=flops,
        )
        for worker, turns in answers.items()
        if worker is not matmul
    ]
    counts = [row["num_parameters"] for row in rows]
    group = {
        "size": size,
        "dtype": dtype,
        "batch": peak.batch,
        "context": peak.context,
        "vocab_size": peak.model["vocab_size"],
        "matmul_flops": flops,
        "matmul_flops_by_round": [turn["flops"] for turn in answers[matmul]],
        "parameter_spread": max(counts) / min(counts) - 1 if counts else 0.0,
    }
    return {
        "rows": rows,
        "left_out": left_out,
        "group": group,
        "threads": matmul.facts["threads"],
    }


def require_memory(started: list[Worker]) -> None:
    """Refuse another process where it might not find memory: none may be killed, or swap.

    Raises:
        WorkerError: If less is left than the largest process so far needed, and a quarter.
    """
    from files.sizes import in_units
    from measuring.machine import bytes_in_proc

    available = bytes_in_proc("meminfo", "MemAvailable")
    on_cpu = [worker for worker in started if worker.job.device == "cpu"]
    largest = max((worker.facts.get("warmup_peak_bytes", 0) for worker in on_cpu), default=0)
    if available is not None and available < 1.25 * largest:
        raise WorkerError(
            f"{in_units(available)} of memory are left, and a process may need "
            f"{in_units(largest)}; measure fewer --systems or --modes at a time"
        )


def _label(job: Job) -> dict[str, str]:
    return {
        "size": job.size,
        "dtype": job.dtype,
        "system": job.system,
        "attention": SYSTEMS[job.system].attention,
        "mode": job.mode,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add_common(parser, SYSTEMS, ["nano", "seed_35m"])
    add("--modes", nargs="+", choices=[EAGER, COMPILED], default=[EAGER, COMPILED])
    add("--warmup-steps", type=positive, default=WARMUP_STEPS)
    add("--allocator", choices=ALLOCATORS, default="as-started")
    add("--optim", choices=["adamw", "muon"], default="adamw", help="kvlab's; peers have AdamW")
    add("--batch", type=positive, help="sequences of a step; the size's own if not given")
    add("--context", type=positive, help="tokens of a sequence; the size's own if not given")
    options = parser.parse_args(arguments)
    options.systems = chosen(parser, SYSTEMS, options.systems)
    return options


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    result = begin("train", options) | {"groups": [], "rows": [], "left_out": []}
    page = ""
    for size in options.sizes:
        for dtype in options.dtypes:
            measured = measure(options, size, dtype)
            result["groups"].append(measured["group"])
            result["rows"] += measured["rows"]
            result["left_out"] += measured["left_out"]
            result["threads"] = measured["threads"]
            result["ratios"] = compare(result["rows"])
            page = as_markdown(result)
            write(page, result, options.output, f"train-{options.allocator}")
    print(page)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(sys.argv[2])
    else:
        main(sys.argv[1:])
