"""How ranks end together: the first that fails, or finds another lost, says why, once for all."""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tracking.failures import is_lost_rank
from training.errors import AlreadyReported, TrainingError, TrainingFailed, TrainingInterrupted
from training.machine.signals import ignore_signals
from training.ranks.heartbeat import Heartbeat
from training.ranks.place import Place

# For the others to find, too, that a rank is lost.
_LOSS_SECONDS = 3.0
# For the last words of a rank that gives another up.
_LAST_WORDS_SECONDS = 15.0
_LOST = "lost"
_ENDED = "ended"
_REASON = "ended/reason"
_MAIN = "main"


@dataclass(eq=False)
class Rank:
    """This process among those that end together.

    Ranks wait for rank 0 by asking torchrun's key-value store, which has no time limit, because
    rank 0 may prepare data for hours; a rank that gives no sign of life is given up.

    Args:
        where: Its rank.
        device: Where it computes.
        store: torchrun's key-value store; None for a process alone.
        report: Prints an error.
        timeout_seconds: How long another rank may be silent.

    Attributes:
        step: What is trained now; says where a rank was lost.
    """

    where: Place
    device: torch.device
    store: Any = None
    report: Callable[[BaseException], None] = lambda error: None
    timeout_seconds: float = math.inf
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rank, self.size = self.where.rank, self.where.size
        self._resume_hint: Callable[[], str] | None = None
        self._heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.where.is_main

    @contextmanager
    def reporting_errors(self, resume_hint: Callable[[], str] | None = None) -> Iterator[None]:
        """Let an error of one rank end them all, reported once; a process alone just raises it.

        Args:
            resume_hint: Says where a rerun begins, should another rank be lost.

        Raises:
            AlreadyReported: In place of whatever was raised within.
        """
        if self.size == 1:
            yield
            return
        outer, self._resume_hint = self._resume_hint, resume_hint or self._resume_hint
        try:
            yield
        except AlreadyReported:
            raise
        except BaseException as error:
            reason = error
            if is_lost_rank(error):
                timed_out = "timed out" in str(error).lower()
                reason = self._loss(self._lost_ranks(), timed_out=timed_out)
            raise AlreadyReported(self._end(reason)) from error
        finally:
            self._resume_hint = outer

    def watch_others(self, store: Any) -> None:
        """Give signs of life from now on, and end this process if a rank it waits for gives none.

        Args:
            store: As this world's, by a connection of its own.
        """
        if self.is_main:
            self.store.set(_MAIN, json.dumps([*_family(), os.getpid()]))
        watched = range(1, self.size) if self.is_main else [0]
        limit, give_up = self.timeout_seconds, self._give_up
        self._heartbeat = Heartbeat(store, self.rank, watched, limit, give_up)
        self._heartbeat.start()

    def stop_watching(self) -> None:
        """Let the other ranks end, or be silent."""
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _give_up(self, rank: int) -> None:
        """Report that a rank is silent, and end this process, from the heartbeat's thread."""
        # The main thread may wait for that rank in a call that nothing interrupts; reporting asks a
        # disk, which may hang.
        threading.Timer(_LAST_WORDS_SECONDS, os._exit, [1]).start()
        try:
            self._end(self._loss([rank], timed_out=True))
        finally:
            os._exit(1)

    def _lost_ranks(self) -> list[int]:
        """Return the ranks that have not found by themselves that one is lost."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        deadline = time.monotonic() + _LOSS_SECONDS
        try:
            self.store.set(f"{_LOST}/{self.rank}", "")
            while len(others) > 1 and time.monotonic() < deadline:
                others = [rank for rank in others if not self.store.check([f"{_LOST}/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:  # the store is gone with its host
            return []
        return others

    def _loss(self, ranks: list[int], *, timed_out: bool) -> TrainingError | TrainingInterrupted:
        """Say which ranks are lost, and where a rerun begins."""
        names = ", ".join(map(str, ranks))
        who = f"rank {names}" if len(ranks) == 1 else f"ranks {names}" if ranks else "another rank"
        what = (
            f"has not answered for {self.timeout_seconds:g} s (trainer.rank_timeout_seconds)"
            if timed_out
            else "died or lost its connection"
        )
        where = f" in step {self.step}" if self.step else ""
        if self._resume_hint is None:
            return TrainingFailed(f"{who} {what}{where}; rerun the same command")
        return TrainingInterrupted(
            f"{who} {what}{where}; rerun the same command to train {self._resume_hint()}"
        )

    def _end(self, error: BaseException) -> str:
        """Report why, unless another rank did; return the name of the error reported."""
        kind = type(error).__name__
        self.stop_watching()
        if threading.current_thread() is threading.main_thread():
            ignore_signals()  # torchrun is about to ask for what is happening here
        try:
            if self.store.add(_ENDED, 1) > 1:
                # It prints before it says so: torchrun ends all soon after the first has ended.
                return self._wait_for_reason(seconds=5.0) or kind
            self.report(error)
            self.store.set(_REASON, kind)
        except RuntimeError:  # the store is gone with its host
            self.report(error)
        return kind

    def _wait_for_reason(self, seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.store.check([_REASON]):
                return self.store.get(_REASON).decode()
            time.sleep(0.01)
        return None

    def _wait_for(self, key: str) -> str:
        pause = 0.001
        is_gone = False
        while not self.store.check([key]):
            if self.store.check([_REASON]):
                raise AlreadyReported(self.store.get(_REASON).decode())
            if is_gone:  # since before it was asked for the key and for a reason
                raise self._loss([0], timed_out=False)
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
            is_gone = self._is_main_gone()
        return self.store.get(key).decode()

    def _is_main_gone(self) -> bool:
        """Return whether rank 0 is a process of this machine that has ended.

        torchrun's SIGTERM, which says so too, also comes when all are to stop, and rank 0 saves.
        """
        if not self.store.check([_MAIN]):
            return False
        *family, pid = json.loads(self.store.get(_MAIN))
        if family != _family():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False


def _family() -> list[str | int]:
    """Return what ranks whose process ids name the same processes have in common."""
    family: list[str | int] = [socket.gethostname(), os.getppid()]
    with suppress(OSError):  # Linux alone has these, and the containers that need them
        family.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        family.append(str(Path("/proc/self/ns/pid").readlink()))
    return family
