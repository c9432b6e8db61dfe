"""How long a user waits before something happens: `--help`, and the first training step.

    python -m benchmarks.startup [repetitions]

Each repetition runs `python -c "import torch"`, `train_model.py --help` and a training of one step
(nano, the prepared default data) one after the other, so that a busy machine slows all three alike.
Prints medians in seconds. Targets: help under 2 s; first step at most 3 s after the bare import.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(command: list[str], until: str | None = None) -> float:
    """Return how long a command takes, or how long until it has printed `until`."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until is not None and until in line:
                elapsed = time.perf_counter() - start
                process.kill()
                return elapsed
        if process.wait() != 0 or until is not None:
            raise SystemExit(f"{command} did not do what it should; run it by hand")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[str, list[float]] = {"import torch": [], "--help": [], "first step": []}
    for _ in range(repetitions):
        times["import torch"].append(seconds([sys.executable, "-c", "import torch"]))
        times["--help"].append(seconds([sys.executable, "train_model.py", "--help"]))
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "-u", "train_model.py", f"runs_dir={runs}"]
            # The line of the first validation is printed right after the first step and it.
            command += ["trainer.eval_every_steps=1", "trainer.eval_tokens=2"]
            times["first step"].append(seconds(command, until="step 1:"))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:12} {median:5.2f} s  (of {', '.join(f'{t:.2f}' for t in times[name])})")
    print(f"first step after import torch: {medians['first step'] - medians['import torch']:.2f} s")


if __name__ == "__main__":
    main()
