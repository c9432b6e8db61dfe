"""Reaching the Hugging Face Hub, or saying in a bounded time that it cannot be reached."""

import errno
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.hub.watch import the_watch, watched

# The library's own retries take 23 s without DNS and 396 s on a silent connection.
_TIMEOUT_S = 5.0
_DEADLINE_S = 9.0


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE asks to use the local cache only."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


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
    the_watch().restart()
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
        key: The setting that names the repository, for messages; its revision has the same prefix.
        alternative: How to do without the Hub, for messages.

    Raises:
        DataError: If there is no such repository or revision, or reading it is not allowed.
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


def explain(error: BaseException, folder: Path | None = None) -> str:
    """Say what failed while something was read, and what to do; no full stop.

    Args:
        error: What was raised.
        folder: Where it was read from; None if from the Hub.
    """
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
    if damaged is not None and folder is not None:
        return f"a file in it is damaged ({damaged}); restore it"
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
