"""How long a decoding step takes: kvlab's attentions and other frameworks, weights the same.

    pip install -r requirements.txt && pip install --no-deps -r requirements-bench.txt
    python -m benchmarks.decode --sizes seed_35m
    python -m benchmarks.decode --sizes gpt2_124m --contexts 1024 4096 --systems '*-mha*' '*-mla'

A step is one token for each sequence of a batch, through the model and its cache, to the logits.
All systems live in one process and take turns, in an order that changes from round to round, so
that a busy machine slows all alike; medians over rounds, and ratios within a round. Each peer has
the weights of the kvlab model of its attention, and before anything is timed its logits are
compared with kvlab's: the run ends with an error where they differ. (litgpt's MLA always
compresses its queries: it has weights of its own, as many.)

Caches are filled with random numbers, since a prefill of 8,192 tokens would take minutes. Within a
turn they grow by a token a step; between turns they are put back, which is not timed. Where the
caches of a point do not fit into memory together, the last systems are left out: measure fewer
--systems at a time.

In the same rounds, for each kvlab system: its linear layers alone, its attention alone, and how
fast the machine reads memory and multiplies matrices, which gives a bound for either.

Writes a Markdown page and JSON to benchmarks/results/ after each point, and prints the page.
--device cuda synchronises around each step, and is untested.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    SIZES,
    WARMUP_ROUNDS,
    add_common,
    begin,
    chosen,
    parser_of,
    positive,
    say,
    write,
)

if TYPE_CHECKING:
    import torch

    from benchmarks.decode_systems import Decoder
    from modeling.gpt import GPT

# Of the memory that is free: what PyTorch needs for itself is not counted.
USABLE_SHARE = 0.9
Seconds = dict[tuple[str, str], list[float]]
"""(system, what) -> of each round."""


class Bench:
    """A size in a dtype: its models and systems, and how they are timed.

    Args:
        options: The command line's.
        size: A key of `SIZES`.
        dtype: float32 or bfloat16, of weights and caches.
    """

    def __init__(self, options: argparse.Namespace, size: str, dtype: str) -> None:
        import torch

        from benchmarks.decode_systems import SYSTEMS, decoding_config, kvlab_model

        self.options, self.size, self.dtype = options, size, dtype
        self.torch_dtype: torch.dtype = getattr(torch, dtype)
        self.models: dict[str, GPT] = {}
        self.decoders: dict[str, Decoder] = {}
        self.left_out: list[dict[str, Any]] = []
        self._device = torch.device(options.device)
        for name in options.systems:
            attention = SYSTEMS[name].attention
            if attention not in self.models:
                config = decoding_config(size, attention, longest(options))
                self.models[attention] = kvlab_model(config, options.device, self.torch_dtype)
            try:
                self.decoders[name] = SYSTEMS[name].build(self.models[attention])
            except ImportError as error:
                self.leave_out(name, error)

    def leave_out(self, system: str, reason: object, **where: int) -> None:
        """Say that a system is not measured, at a point or at all."""
        if isinstance(reason, Exception):
            reason = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
        what = {"size": self.size, "dtype": self.dtype, "system": system, **where}
        self.left_out.append(what | {"reason": reason})
        say(f"{self.size} {self.dtype}: {system} is left out: {reason}")

    def model(self, system: str) -> "GPT":
        """Return the kvlab model that has a system's dimensions."""
        from benchmarks.decode_systems import SYSTEMS

        return self.models[SYSTEMS[system].attention]

    def compare_outputs(self) -> list[dict[str, Any]]:
        """Return how far the logits of each peer with the same weights are from kvlab's."""
        from benchmarks.decode_systems import SYSTEMS, KvlabDecoder, logit_difference

        found = []
        for name, decoder in self.decoders.items():
            if SYSTEMS[name].is_peer and SYSTEMS[name].has_same_weights:
                model = self.model(name)
                vocab_size = SIZES[self.size].vocab_size
                difference = logit_difference(
                    KvlabDecoder(model), decoder, vocab_size, self.options.device
                )
                found.append({"size": self.size, "system": name, "difference": difference})
        return found

    def point(self, batch: int, context: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure all systems at a batch and a context.

        Returns:
            What the point was like, and the rows of its systems.
        """
        from benchmarks.decode_memory import need, that_fit
        from measuring.machine import available_bytes

        length = context + self.options.steps_per_turn
        needs = {
            name: need(name, self.model(name).config, batch, length, self.torch_dtype)
            for name in self.decoders
        }
        free = available_bytes(self._device)
        names, unfit = that_fit(needs, None if free is None else int(USABLE_SHARE * free))
        for name, reason in unfit.items():
            self.leave_out(name, reason, batch=batch, context=context)
        began = time.perf_counter()
        measured, speeds = self._take_turns(names, batch, context)
        say(
            f"{self.size} {self.dtype} b{batch} c{context}: {len(names)} systems, "
            f"{time.perf_counter() - began:.0f} s"
        )
        what = {"size": self.size, "dtype": self.dtype, "batch": batch, "context": context}
        medians = {key: statistics.median(values) for key, values in speeds.items() if values}
        return what | medians, self._rows(measured, speeds, batch, context)

    def _rows(
        self, measured: Seconds, speeds: dict[str, list[float]], batch: int, context: int
    ) -> list[dict[str, Any]]:
        from benchmarks.decode_parts import attention_flops, cache_bytes, linear_weights
        from benchmarks.decode_report import STEP, make_row
        from benchmarks.decode_systems import SYSTEMS

        rows = []
        for system in [name for name, what in measured if what == STEP]:
            model = self.model(system)
            facts = {
                "size": self.size,
                "dtype": self.dtype,
                "batch": batch,
                "context": context,
                "system": system,
                "attention": SYSTEMS[system].attention,
            }
            if not SYSTEMS[system].is_peer:
                facts |= {
                    "cache_bytes": cache_bytes(model.config, batch, context, self.torch_dtype),
                    "weight_bytes": sum(w.nbytes for w in linear_weights(model)),
                    "attention_flops": attention_flops(model.config, batch, context),
                }
            rounds = {what: times for (name, what), times in measured.items() if name == system}
            rows.append(make_row(facts, rounds, speeds))
        return rows

    def _take_turns(
        self, names: list[str], batch: int, context: int
    ) -> tuple[Seconds, dict[str, list[float]]]:
        """Let systems take turns; return their times, and the machine's speeds."""
        import torch

        from measuring.machine import measure_memory_bandwidth
        from training.machine.hardware import measure_matmul_flops

        device = self._device
        vocab_size = SIZES[self.size].vocab_size
        tokens = torch.randint(vocab_size, (batch, 1)).to(device)
        speeds: dict[str, list[float]] = {"bandwidth": [], "matmul": []}
        turns: dict[tuple[str, str], Callable[[int], float]] = {}
        times: Seconds = {}
        with torch.inference_mode():
            try:
                for name in names:
                    try:
                        self.decoders[name].start(batch, context, self.options.steps_per_turn)
                        turns |= self._turns(name, tokens, batch)
                    except Exception as error:
                        self.leave_out(name, error, batch=batch, context=context)
                for number in range(WARMUP_ROUNDS + self.options.rounds):
                    is_measured = number >= WARMUP_ROUNDS
                    gc.collect()
                    if is_measured:
                        speeds["bandwidth"].append(measure_memory_bandwidth(device))
                        speeds["matmul"].append(
                            measure_matmul_flops(device, self.torch_dtype, size=2048)
                        )
                    for key in _order(list(turns), number):
                        if key not in turns:
                            continue
                        try:
                            taken = turns[key](self.options.steps_per_turn if is_measured else 1)
                        except Exception as error:
                            self.leave_out(key[0], error, batch=batch, context=context)
                            turns = {k: v for k, v in turns.items() if k[0] != key[0]}
                            times = {k: v for k, v in times.items() if k[0] != key[0]}
                            continue
                        if is_measured:
                            times.setdefault(key, []).append(taken)
            finally:
                for name in names:
                    self.decoders[name].stop()
                turns.clear()
                gc.collect()
        in_order = {key: times[key] for name in names for key in times if key[0] == name}
        return in_order, speeds

    def _turns(
        self, name: str, tokens: "torch.Tensor", batch: int
    ) -> dict[tuple[str, str], Callable[[int], float]]:
        """Return what a system does in a round: its steps and, of kvlab, parts of them alone."""
        from benchmarks.decode_parts import attention_alone, linear_alone
        from benchmarks.decode_report import ATTENTION, LINEAR, STEP
        from benchmarks.decode_systems import KvlabDecoder

        decoder = self.decoders[name]

        def step(steps: int) -> float:
            taken = self._time(lambda: decoder.step(tokens), steps)
            decoder.rewind()
            return taken

        turns: dict[tuple[str, str], Callable[[int], float]] = {(name, STEP): step}
        if isinstance(decoder, KvlabDecoder):
            assert decoder.cache is not None
            linear = linear_alone(decoder.model, batch)
            attention = attention_alone(decoder.model, decoder.cache)
            turns[name, LINEAR] = lambda steps: self._time(linear, steps)
            turns[name, ATTENTION] = lambda steps: self._time(attention, steps)
        return turns

    def _time(self, call: Callable[[], object], repetitions: int) -> float:
        """Return the median of a call's seconds, with no garbage collected meanwhile."""
        from measuring.machine import synchronize

        seconds = []
        gc.disable()
        try:
            for _ in range(repetitions):
                synchronize(self._device)
                began = time.perf_counter()
                call()
                synchronize(self._device)
                seconds.append(time.perf_counter() - began)
        finally:
            gc.enable()
        return statistics.median(seconds)


def _order(turns: list[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    """Return the turns of a round: another begins each time, and nobody always follows the same."""
    first = number * 5 % len(turns) if turns else 0
    rotated = turns[first:] + turns[:first]
    return rotated[::-1] if number % 2 else rotated


def longest(options: argparse.Namespace) -> int:
    """Return how many tokens the longest text of the run has."""
    return int(max(options.contexts)) + int(options.steps_per_turn)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    from benchmarks.decode_systems import SYSTEMS

    parser = parser_of(__doc__)
    add = parser.add_argument
    add_common(parser, SYSTEMS, ["seed_35m"])
    add("--contexts", nargs="+", type=positive, default=[128, 1024, 4096, 8192])
    add("--batches", nargs="+", type=positive, default=[1, 8])
    options = parser.parse_args(arguments)
    options.systems = chosen(parser, SYSTEMS, options.systems)
    return options


def main(arguments: list[str]) -> None:
    """Measure, write and print."""
    options = parse(arguments)
    import torch

    from benchmarks.decode_report import OUTPUT_TOLERANCE, as_markdown, compare

    result = begin("decode", options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result["threads"] = torch.get_num_threads()
    for key in ("outputs", "points", "rows", "ratios", "left_out"):
        result[key] = []

    def write_so_far(bench: Bench) -> str:
        result["left_out"] += bench.left_out
        bench.left_out = []
        result["ratios"] = compare(result["rows"])
        page = as_markdown(result)
        write(page, result, options.output, "-".join(["decode", *options.sizes]))
        return page

    page = ""
    for size in options.sizes:
        bench = Bench(options, size, "float32")
        result["outputs"] += bench.compare_outputs()
        page = write_so_far(bench)
        wrong = [one for one in result["outputs"] if not one["difference"] <= OUTPUT_TOLERANCE]
        if wrong:
            names = ", ".join(f"{one['system']} by {one['difference']:.1e}" for one in wrong)
            raise SystemExit(
                f"{size}: logits differ from kvlab's, relative to their deviation: {names}; at "
                f"most {OUTPUT_TOLERANCE:.0e} is rounding, so nothing was timed"
            )
        for dtype in options.dtypes:
            if dtype != bench.dtype:
                del bench  # or both would need memory
                bench = Bench(options, size, dtype)
            for batch in options.batches:
                for context in options.contexts:
                    point, rows = bench.point(batch, context)
                    result["points"].append(point)
                    result["rows"] += rows
                    page = write_so_far(bench)
        del bench
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
