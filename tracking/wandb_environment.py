"""wandb's environment variables: which hold along with the configuration, and its folders."""

import os
from pathlib import Path
from typing import Annotated

import msgspec

from files.atomic import write_json
from files.errors import RunError
from files.typed_json import read_typed

# They name one run: with several, all would be the same one.
_OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME")
_ID_FILE = "kvlab-run-id.json"


class _Recorded(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]


def variable(name: str) -> str | None:
    """Return an environment variable; None if it is not set or empty."""
    return os.environ.get(name) or None


def forget_names_of_one_run() -> dict[str, str]:
    """Unset the variables that name one run, for this process and those that it starts.

    Returns:
        What was set: `os.environ.update` puts it back.
    """
    return {name: os.environ.pop(name) for name in _OF_ONE_RUN if os.environ.get(name)}


def give_folders(folder: Path) -> None:
    """Let wandb write its logs and staged files below a folder where the home is not writable.

    It would otherwise log to stderr.
    """
    homes = {
        "WANDB_CACHE_DIR": Path(variable("XDG_CACHE_HOME") or "~/.cache"),
        "WANDB_DATA_DIR": Path(variable("XDG_DATA_HOME") or "~/.local/share"),
    }
    for name, home in homes.items():
        if variable(name):
            continue
        try:
            place = home.expanduser() / "wandb"
            place.mkdir(parents=True, exist_ok=True)
            is_writable = os.access(place, os.W_OK)
        except (OSError, RuntimeError):  # there may be no home at all
            is_writable = False
        if not is_writable:
            os.environ[name] = str(folder / "wandb")


def run_id(folder: Path, new_id: str, *, resumes: bool) -> str:
    """Return the id of a run in wandb, and record it for the commands that resume the run.

    WANDB_RUN_ID wins over the recorded one.

    Args:
        folder: The run's folder.
        new_id: For a run without one.
        resumes: Whether the run has begun; another one is recorded otherwise.
    """
    path = folder / "wandb" / _ID_FILE
    recorded = None
    if resumes:
        try:
            recorded = read_typed(path, _Recorded).id
        except RunError:  # never recorded, or damaged: another run in wandb
            recorded = None
    chosen = variable("WANDB_RUN_ID") or recorded or new_id
    if chosen != recorded:
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"id": chosen})
    return chosen
