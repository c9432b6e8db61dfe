"""A watch on the connection to the Hugging Face Hub: a silent one is given up in a stated time."""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

from data.errors import DataError

# Without an answer or a byte for this long while one is awaited, a watched call is given up.
SILENCE_S = 60.0
_POLL_S = 0.25

# The Hub sends these while it is busy; not all of the library's requests are repeated by itself.
_BUSY = (429, 502, 503, 504)
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)


class _GivenUpError(BaseException):
    """Ends a call that nobody waits for; no Exception, after which the library would ask again."""


class Watch:
    """When the Hub was last heard, and what failed since; used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._round = 0
        self.closed = threading.Event()
        self.given_up: WeakSet[threading.Thread] = WeakSet()
        self.restart()

    def restart(self) -> None:
        """Start over: nothing is awaited and nothing failed."""
        with self._lock:
            self._round += 1
            self._awaited, self._heard, self.failure = 0, time.monotonic(), ""
        self.closed.clear()

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """Count the time inside as waiting for the Hub, until `hear`."""
        if self.closed.is_set() or threading.current_thread() in self.given_up:
            raise _GivenUpError
        with self._lock:
            if not self._awaited and not self.failure:
                self._heard = time.monotonic()
            self._awaited += 1
            started_in = self._round
        try:
            yield
        except Exception as error:
            if started_in == self._round:
                self.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                # A request that was given up may end in a later round.
                self._awaited -= started_in == self._round

    def hear(self) -> None:
        """Note an answer or a piece of one."""
        with self._lock:
            self._heard, self.failure = time.monotonic(), ""

    def fail(self, cause: str) -> None:
        """Note that a request failed, and why."""
        with self._lock:
            self.failure = cause

    def silence(self) -> float:
        """Return for how many seconds an answer has been due; 0 during work on this machine."""
        with self._lock:
            # After a failure the library pauses before it asks again: still no news.
            due = self._awaited > 0 or bool(self.failure)
            return time.monotonic() - self._heard if due else 0.0


@cache
def the_watch() -> Watch:
    """Make huggingface_hub's HTTP client report to a watch, and repeat requests to a busy Hub."""
    from huggingface_hub import constants, get_session, set_client_factory

    watch = Watch()
    plain = get_session()
    # httpx, or httpx2 from huggingface_hub 2 on.
    library = import_module(type(plain).__module__.partition(".")[0])
    plain_client: Any = type(plain)

    body_stream: Any = library.SyncByteStream

    class Body(body_stream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            pieces = iter(self.stream)
            while True:
                with watch.awaiting():
                    piece = next(pieces, None)
                watch.hear()
                if piece is None:
                    return
                yield piece

        def close(self) -> None:
            self.stream.close()

    class Client(plain_client):
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            dropped = False
            for pause in (*_PAUSES_S, None):
                try:
                    with watch.awaiting():
                        response = super().send(request, stream=True, **options)
                    if response.status_code in _BUSY:
                        watch.fail(f"HTTP {response.status_code}")
                    else:
                        watch.hear()
                    if response.status_code not in _BUSY or pause is None:
                        response.stream = Body(response.stream)
                        if not stream:
                            with _closed_on_error(response):
                                response.read()
                        return response
                    response.close()
                except (library.ReadError, library.RemoteProtocolError):
                    if dropped or pause is None:
                        raise
                    dropped = True
                watch.closed.wait(pause)
            raise AssertionError("the last attempt returns or raises")

    def make_client() -> Any:
        return Client(
            event_hooks=plain.event_hooks,
            follow_redirects=plain.follow_redirects,
            # For requests without one; the library's default is none.
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )

    set_client_factory(make_client)
    # Xet has a transport of its own, which cannot be watched; plain HTTP resumes downloads too.
    constants.HF_HUB_DISABLE_XET = True
    return watch


@contextmanager
def _closed_on_error(response: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        response.close()
        raise


class _Worker:
    """A daemon thread that is kept: HfFileSystem has one listing of files a thread."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the thread after its present call."""
        self._calls.put(None)

    def start(self, call: Callable[[], Any]) -> "SimpleQueue[Any]":
        outcome: SimpleQueue[Any] = SimpleQueue()
        self._calls.put((call, outcome))
        return outcome

    def _run(self) -> None:
        while (task := self._calls.get()) is not None:
            call, outcome = task
            try:
                outcome.put((call(), None))
            except BaseException as error:
                outcome.put((None, error))
            del task, call, outcome


_idle: list[_Worker] = []
_stuck: list[_Worker] = []


def _end_stuck() -> None:
    """Wait for calls that were given up: pyarrow aborts a process that exits during one."""
    if _stuck:
        from huggingface_hub import constants

        the_watch().closed.set()
        # A read that waits for the Hub ends by its timeout.
        end = time.monotonic() + constants.HF_HUB_DOWNLOAD_TIMEOUT + 2
        for worker in _stuck:
            worker.thread.join(max(0.0, end - time.monotonic()))


atexit.register(_end_stuck)


def watched(what: str, call: Callable[[], Any], alternative: str) -> Any:
    """Return call(), or give it up when the Hub has been silent for SILENCE_S.

    Args:
        what: What is read, for the message: "dataset 'a/b'".
        call: Asks the Hub, with retries of its own; work on this machine may take any time.
        alternative: How to do without the Hub, for the message.

    Raises:
        DataError: If the Hub is silent. What `call` raises is raised here.
    """
    from huggingface_hub import constants

    watch = the_watch()
    watch.restart()
    worker = _idle.pop() if _idle else _Worker()
    # Threads do not survive a fork.
    if not worker.thread.is_alive():
        worker = _Worker()
    outcome = worker.start(call)
    try:
        while True:
            with suppress(Empty):
                result, error = outcome.get(timeout=_POLL_S)
                break
            if watch.silence() > SILENCE_S:
                raise DataError(
                    f"{what}: nothing came from the Hub at {constants.ENDPOINT} for {SILENCE_S:g} s"
                    f" ({watch.failure or 'no answer'}); try again later, which continues "
                    f"with what the cache has, or {alternative}"
                )
    except BaseException:
        watch.closed.set()
        watch.given_up.add(worker.thread)
        worker.stop()
        _stuck.append(worker)
        raise
    _idle.append(worker)
    if error is not None:
        raise error
    return result
