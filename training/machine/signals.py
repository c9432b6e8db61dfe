"""The signals that ask this process to end."""

import contextlib
import os
import signal
import sys
from types import FrameType

# SIGHUP: the terminal is gone. SIGUSR1 and SIGUSR2: what schedulers send before a time limit.
SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has the first two
)


def ignore_signals(*, but_ctrl_c: bool = False) -> None:
    """Take no signal any more: this process is ending, with a status of its own.

    Args:
        but_ctrl_c: Ctrl-C leaves at once.
    """
    for number in SIGNALS:
        leaves = but_ctrl_c and number == signal.SIGINT
        signal.signal(number, leave if leaves else signal.SIG_IGN)


def leave(number: int, frame: FrameType | None) -> None:
    """End this process as a kill would, which every file of a run outlives.

    An exception would meet waits on its way out: for wandb, for a disk, for other ranks.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"\nkvlab: interrupted again, so left at once; what was saved before is kept\n")
    os._exit(128 + number)
