"""Where the time of a few training steps goes."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from tracking.notices import Say

TRACE_NAME = "trace.json"
TABLE_NAME = "operators.txt"
_ROWS = 30


@contextlib.contextmanager
def profiled_steps(
    enabled: bool, folder: Path, num_steps: int, device: torch.device, say: Say
) -> Iterator[Callable[[], None]]:
    """While entered, record the third to fifth step; earlier ones if there are fewer.

    Nothing random is drawn and nothing computed otherwise, so the weights stay the same. A trace
    that cannot be written is reported, and training continues.

    Args:
        enabled: False does nothing.
        folder: Gets the Chrome trace (chrome://tracing or https://ui.perfetto.dev) and a table of
            the operators that took longest; those of an earlier profile are replaced.
        num_steps: Steps that this process will make.
        device: Of the model.
        say: Prints a line.

    Yields:
        What to call after each step.
    """
    if not enabled or num_steps < 1:
        yield lambda: None
        return
    on_cuda = device.type == "cuda"

    def write(profiler: profile) -> None:
        order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(folder / TRACE_NAME))
            table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS)
            (folder / TABLE_NAME).write_text(table + "\n", encoding="utf-8")
            say(f"profile: {folder / TRACE_NAME} and {TABLE_NAME}")
        except (OSError, RuntimeError) as error:
            say(f"the profile could not be written ({error}); training continues without it")

    active = min(num_steps, 3)
    warmup = min(num_steps - active, 1)
    wait = min(num_steps - active - warmup, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a run too short for a warm-up
        steps = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda,
        schedule=steps,
        on_trace_ready=write,
        # Otherwise a profile that begins again drops the one before with a warning.
        acc_events=True,
    ) as profiler:
        yield profiler.step
