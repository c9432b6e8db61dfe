"""The trainings of a sweep, several at once: each in a process with its share of the cores."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import OmegaConf

from files.errors import RunError
from launch.errors import ConfigError
from launch.failures import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    rank_and_size,
    status_of,
)
from launch.sweep import Maker, Outcome, Run, Sweep
from launch.terminal import complain, say
from tracking.progress import Bar, in_words
from tracking.run_folder import RunFolder
from training.machine.signals import SIGNALS

LOG = "output.log"
"""In the folder of a run: what it printed."""
_CHECK_SECONDS = 1.0
_OF_GPUS = ("/dev/nvidiactl", "/dev/kfd")


def number_at_once(jobs: str, runs: Sequence[Run]) -> int:
    """Return how many runs are made at once; 1 is one after another.

    Args:
        jobs: A whole number, or auto: as many as there are cores, where nothing speaks against it.
        runs: Of the sweep.

    Raises:
        ConfigError: If it is neither.
    """
    if jobs != "auto" and (not jobs.isdecimal() or int(jobs) < 1):
        raise ConfigError(f"sweep.jobs ({jobs}) must be how many runs are made at once, or auto")
    shares = any(run.value("dry_run") or run.value("fair_lr") for run in runs)
    if shares or rank_and_size()[1] > 1 or not hasattr(os, "fork"):
        return 1  # they share a clock, a grid of runs, or ranks
    if jobs != "auto":
        return min(int(jobs), len(runs))
    devices = {run.value("trainer.device") for run in runs}
    has_gpu = devices != {"cpu"} and any(Path(path).exists() for path in _OF_GPUS)
    return 1 if has_gpu else min(_cores(), len(runs))


def make_at_once(sweep: Sweep, make: Maker, number: int) -> None:
    """Make the runs of a sweep, several at once, and say how each ended.

    A signal is passed on to all, which save; no other run begins then.

    Args:
        sweep: Notes how they end.
        make: Makes a run, and returns its exit status and why it is not 0.
        number: Of runs at once.
    """
    for run in sweep.runs:
        run.summary = run.read_summary()  # what is finished takes no time
        if run.value("trainer.num_threads") is None:
            OmegaConf.update(run.config, "trainer.num_threads", max(1, _cores() // number))
    waiting, running = list(sweep.runs), list[_Running]()
    say(f"{len(waiting)} runs, {number} at once; what each prints is in {LOG} of its folder")
    with _passing_on(running) as is_stopped, Bar("sweep") as bar:
        while running or (waiting and not is_stopped()):
            while waiting and len(running) < number and not is_stopped():
                _begin(waiting.pop(0), sweep, make, running)
            bar.show(*_progress(sweep, waiting, running, number))
            ends = [one.process.sentinel for one in running]
            connection.wait(ends, _CHECK_SECONDS)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                _end(one.run, sweep, *one.outcome(is_stopped()))
                _forget_output(one)
    if is_stopped():
        left = sum(not run.status.startswith("done") for run in sweep.runs)
        say(f"{left} of {len(sweep.runs)} runs are not finished; the same command resumes them")


@dataclass
class _Running:
    """A run in a process of its own."""

    run: Run
    process: Any
    result: connection.Connection
    log: Path
    began: float

    def outcome(self, is_stopped: bool) -> Outcome:
        """Return how it ended."""
        with contextlib.suppress(EOFError, OSError):
            return self.result.recv()
        self.process.join()
        code = self.process.exitcode
        if is_stopped:
            return EXIT_INTERRUPTED, "interrupted before it could save"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return EXIT_FAILED, f"{how}; see {self.log}"


def _begin(run: Run, sweep: Sweep, make: Maker, running: list[_Running]) -> None:
    """Start a process for a run, if its folder can be written."""
    run.begin()
    try:
        folder = RunFolder(run.folder_of_runs, run.name)
        folder.create()
        log = folder.path / LOG
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except (OSError, RunError) as error:
        _end(run, sweep, status_of(error), str(error))
        return
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # A fork has imported what composes, and what was composed; PyTorch nobody has imported yet.
    process = multiprocessing.get_context("fork").Process(
        target=_in_a_process, args=(make, run, output, sender, os.getpid())
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sender.close()
    os.close(output)
    running.append(_Running(run, process, receiver, log, time.monotonic()))


def _in_a_process(
    make: Maker, run: Run, output: int, sender: connection.Connection, parent: int
) -> None:
    """Make a run, with its output in a file, in a process group of its own."""
    os.setpgid(0, 0)  # Ctrl-C is the parent's to pass on, once
    for asked in SIGNALS:
        if signal.getsignal(asked) is not signal.SIG_IGN:
            signal.signal(asked, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_stop_with, args=[parent], daemon=True).start()
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(file, stream)
    sender.send(make(run))


def _stop_with(parent: int) -> None:
    """Ask this process to save and end soon after its parent has ended, however that ended."""
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _end(run: Run, sweep: Sweep, status: int, reason: str) -> None:
    """Note how a run ended, and say it in a line."""
    sweep.end(run, status, reason)
    which = f"run {sweep.runs.index(run) + 1} of {len(sweep.runs)}, {run.label}"
    if status == 0:
        say(f"{which}: {run.in_short()}")
    else:
        complain(f"{which}: {reason}")


def _forget_output(one: _Running) -> None:
    """Leave no folder of a run that was refused, which holds nothing but why."""
    folder = one.log.parent
    if one.run.exit_status == EXIT_BAD_INPUT and [path.name for path in folder.iterdir()] == [LOG]:
        one.log.unlink()
        folder.rmdir()


@contextlib.contextmanager
def _passing_on(running: Sequence[_Running]) -> Iterator[Callable[[], bool]]:
    """Pass signals on to the processes that run meanwhile; yields what says whether one came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for one in running:
            if one.process.pid is not None and one.process.is_alive():
                os.kill(one.process.pid, number)

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _progress(
    sweep: Sweep, waiting: Sequence[Run], running: Sequence[_Running], number: int
) -> tuple[int, int, str, *tuple[str, ...]]:
    """Return how many runs are made of how many, and both with the time left in words."""
    total = len(sweep.runs)
    made = total - len(waiting) - len(running)
    seconds = [run.summary["wall_seconds"] for run in sweep.runs if run.summary]
    pieces = []
    if seconds:
        each, now = sum(seconds) / len(seconds), time.monotonic()
        begun = [now - one.began for one in running if not one.run.summary]
        behind = sum(not run.summary for run in waiting)
        left = each * behind + sum(max(0.0, each - elapsed) for elapsed in begun)
        pieces.append(f"{in_words(left / number)} left")
    return made, total, f"{made} of {total} runs", *pieces


def _cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
