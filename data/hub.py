"""Reaching the Hugging Face Hub, or saying in a bounded time that it cannot be reached."""

import atexit
import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

from data.errors import DataError

# The library's own retries take 23 s without DNS and 396 s on a silent connection.
_TIMEOUT_S = 5.0
_DEADLINE_S = 9.0

# Without an answer or a byte for this long while one is awaited, a watched call is given up.
SILENCE_S = 60.0
_POLL_S = 0.25

# The Hub sends these while it is busy; not all of the library's requests are repeated by itself.
_BUSY = (429, 502, 503, 504)
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE asks to use the local cache only."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


class _GivenUpError(BaseException):
    """Ends a call that nobody waits for; no Exception, after which the library would ask again."""


class _Watch:
    """When the Hub was last heard, and what failed since; used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._round = 0
        self.closed = threading.Event()
        self.given_up: WeakSet[threading.Thread] = WeakSet()
        self.restart()

    def restart(self) -> None:
        with self._lock:
            self._round += 1
            self._awaited, self._heard, self.failure = 0, time.monotonic(), ""
        self.closed.clear()

    @contextmanager
    def awaiting(self) -> Iterator[None]:
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
        with self._lock:
            self._heard, self.failure = time.monotonic(), ""

    def fail(self, cause: str) -> None:
        with self._lock:
            self.failure = cause

    def silence(self) -> float:
        """Return for how many seconds an answer has been due; 0 during work on this machine."""
        with self._lock:
            # After a failure the library pauses before it asks again: still no news.
            due = self._awaited > 0 or bool(self.failure)
            return time.monotonic() - self._heard if due else 0.0


@cache
def _watch() -> _Watch:
    """Make huggingface_hub's HTTP client report to a watch, and repeat requests to a busy Hub."""
    from huggingface_hub import constants, get_session, set_client_factory

    watch = _Watch()
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

        _watch().closed.set()
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

    watch = _watch()
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
                    f" ({watch.failure or 'no answer'}); try again later, which goes on with what "
                    f"the cache already has, or {alternative}"
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


def check_reachable(what: str, alternative: str) -> None:
    """Return if the Hub (HF_ENDPOINT) answers within seconds, or if the user asked for no network.

    Args:
        what: What is to be loaded, for the message: "dataset 'a/b'".
        alternative: How to do without the Hub, for the message.

    Raises:
        DataError: If it does not answer.
    """
    from huggingface_hub import constants, get_session

    if is_offline():
        return
    _watch().restart()
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    # A thread, because no timeout of the HTTP client covers name resolution.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_DEADLINE_S)
    error = outcome[0] if outcome else TimeoutError("no answer")
    if error is not None:
        raise DataError(
            f"{what}: cannot reach the Hub at {constants.ENDPOINT} "
            f"({type(error).__name__}: {error}); {alternative}, or set HF_HUB_OFFLINE=1 if it was "
            "downloaded before"
        ) from error


def resolve(kind: str, path: str, revision: str | None, key: str, alternative: str) -> str:
    """Ask the Hub for the commit of a repository's revision, and note it in the cache.

    Args:
        kind: "dataset" or "model".
        path: The repository's name.
        revision: Branch, tag or commit; None: the newest.
        key: The setting that names the repository, for messages; its revision is beside it.
        alternative: How to do without the Hub, for messages.

    Raises:
        DataError: If there is no such repository or revision, or it may not be read.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    describe: Any = api.dataset_info if kind == "dataset" else api.model_info

    def ask() -> str:
        commit: str = describe(path, revision=revision, timeout=_TIMEOUT_S).sha
        if commit != revision:
            # Files are read by commit; without this the cache would not know whose commit it is.
            with suppress(Exception):
                api.hf_hub_download(path, "README.md", repo_type=kind, revision=revision or "main")
        return commit

    try:
        return watched(f"{kind} {path!r}", ask, alternative)
    except DataError:
        raise
    except Exception as error:
        where = f"{key} ({path!r})"
        if _find(error, "RevisionNotFoundError"):
            where = f"{key.partition('.')[0]}.revision ({revision!r}) of {path}"
        raise DataError(f"{where}: {explain(error)}, or {alternative}") from error


def cached_commit(kind: str, path: str, revision: str) -> str | None:
    """Return the commit that the cache has for a branch or tag, if it says so."""
    from huggingface_hub import snapshot_download

    # The layout of the cache is documented: snapshots/COMMIT.
    with suppress(Exception):
        folder = snapshot_download(path, repo_type=kind, revision=revision, local_files_only=True)
        return Path(folder).name
    return None


def _find(error: BaseException, *names: str) -> Any:
    """Return the first error of these classes among an error and its causes; or None."""
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in names for kind in type(seen).__mro__):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def explain(error: Exception) -> str:
    """Say what failed while something of the Hub was read, and what to do; no full stop."""
    from huggingface_hub import constants

    if _disk_is_full(error):
        return (
            f"the disk of the cache is full; free some space or move the cache, now "
            f"{constants.HF_HOME}, with HF_HOME"
        )
    # datasets keeps the text only.
    if _find(error, "GatedRepoError") or "is a gated dataset" in str(error):
        return "it is gated; accept its terms on the Hub and log in with `hf auth login`"
    if _find(error, "RepositoryNotFoundError") or "or cannot be accessed" in str(error):
        return (
            "the Hub has no such repository, or it is private; check the name, log in with "
            "`hf auth login`"
        )
    if _find(error, "RevisionNotFoundError"):
        return "there is no such branch, tag or commit; check it on the Hub"
    http = _find(error, "HfHubHTTPError")
    if http is not None and http.response is not None:
        status = http.response.status_code
        if status in (401, 403):
            return f"the Hub refused it (HTTP {status}); log in with `hf auth login`"
        return f"the Hub answered HTTP {status}; try again later"
    network = _find(error, "TransportError")
    if network is not None:
        return f"the connection failed ({type(network).__name__}: {network}); try again later"
    damaged = _find(error, "ArrowInvalid", "JSONDecodeError", "UnicodeDecodeError")
    if damaged is not None:
        return (
            f"a data file is damaged ({damaged}); take another revision, or delete the copy under "
            f"{constants.HF_HOME} to fetch it again"
        )
    if "scripts are no longer supported" in str(error):
        return (
            f"{error}: code of a dataset is never run; take the Parquet files that the Hub may "
            "have made of it with data.revision=refs/convert/parquet"
        )
    if "trust_remote_code" in str(error):
        return "it comes with code of its own, which is never run; take one without"
    return f"{type(error).__name__}: {error}"
