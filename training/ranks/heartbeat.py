"""A sign of life from each rank, so that one that is stopped or gone is noticed, and named."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# In a row, after which the store is taken to be gone.
_FAILURES = 3


@dataclass(eq=False)
class Heartbeat:
    """Gives this rank's sign of life in a thread of its own, and watches those of others.

    The thread keeps on while the rank works at anything, a preparation of hours say. It counts its
    own turns, not the clock's: a job that is suspended as a whole has missed nothing.

    Args:
        store: torchrun's key-value store, by a connection that nothing else waits on.
        rank: This one.
        watched: The ranks to watch, each from its first sign of life on.
        limit_seconds: How long one may be silent.
        on_silence: Called once, in the thread, with a rank that has been silent for longer.
    """

    store: Any
    rank: int
    watched: Sequence[int]
    limit_seconds: float
    on_silence: Callable[[int], None]

    def __post_init__(self) -> None:
        self.stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Watch no more, and say nothing more."""
        self.stopped.set()

    def _beat(self) -> None:
        pause = min(5.0, self.limit_seconds / 10)
        last: dict[int, bytes] = {}
        silent = dict.fromkeys(self.watched, 0.0)
        turn = failures = 0
        while failures < _FAILURES and not self.stopped.wait(pause):
            turn += 1
            try:
                self.store.set(_key(self.rank), str(turn))
                found = {rank: self._found(rank) for rank in self.watched}
                failures = 0
            except RuntimeError:  # busy for too long, or gone with its host, and torchrun with it
                failures += 1
                continue
            for rank, now in found.items():
                is_silent = now is not None and now == last.get(rank)
                silent[rank] = silent[rank] + pause if is_silent else 0.0
                if now is not None:
                    last[rank] = now
                if silent[rank] > self.limit_seconds and not self.stopped.is_set():
                    self.on_silence(rank)
                    return

    def _found(self, rank: int) -> bytes | None:
        return self.store.get(_key(rank)) if self.store.check([_key(rank)]) else None


def _key(rank: int) -> str:
    return f"alive/{rank}"
