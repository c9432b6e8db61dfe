"""Reaching the Hugging Face Hub, or saying within seconds that it cannot be reached."""

import threading
from typing import Any

from data.errors import DataError

# The library's own retries take 23 s without DNS and 396 s on a silent connection.
_TIMEOUT_S = 5.0
_DEADLINE_S = 9.0


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE asks to use the local cache only."""
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


def resolve_dataset(path: str, revision: str | None) -> Any:
    """Ask the Hub what a dataset's revision is.

    Returns:
        huggingface_hub's DatasetInfo; its `sha` is the commit.

    Raises:
        DataError: If there is no such dataset or revision, or it may not be read.
    """
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().dataset_info(path, revision=revision, timeout=_TIMEOUT_S)
    except errors.GatedRepoError as error:
        raise DataError(
            f"data.path ({path!r}): this dataset is gated; accept its terms on the Hub and log in "
            "with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"data.path ({path!r}): the Hub has no such dataset, or it is private; check the name "
            "or log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"data.revision ({revision!r}): dataset {path!r} has no such branch, tag or commit"
        ) from error
    except Exception as error:
        raise DataError(
            f"data.path ({path!r}): the Hub did not describe the dataset "
            f"({type(error).__name__}: {error}); try again later"
        ) from error
