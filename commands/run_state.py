"""What there is of a run: its checkpoints, its configuration, the data that it has seen."""

import contextlib
from collections.abc import Callable
from typing import Any

from data.prepared import PreparedData
from files.errors import RunError
from launch.errors import ConfigError
from launch.recorded import as_yaml, require_same_run
from launch.schemas import TrainConfig
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder


def has_checkpoint(run: RunFolder) -> bool:
    """Tell whether the training will find one, or refuse to begin where all are damaged."""
    return bool(CheckpointStore(run.checkpoints_path, 1, read_only=True).steps())


def has_begun(run: RunFolder) -> bool:
    """Tell whether a run has a configuration that it was trained by."""
    return run.read_summary() is not None or has_checkpoint(run)


def start_run(
    run: RunFolder,
    config: TrainConfig,
    prepared: PreparedData,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Record the configuration of a run that is to be trained; return a finished one's summary.

    Raises:
        ConfigError: If the run exists with another configuration, or on other data.
    """
    summary = run.read_summary()
    if has_begun(run):
        require_same_run(run.config_path, config)
    if summary is not None and summary.get("finished"):
        require_same_data(run, prepared)
        return summary
    text = as_yaml(config)
    if run.config_path.is_file() and run.config_path.read_bytes() != text.encode():
        say(f"{run.name} has a new configuration; the one that was there is replaced")
    run.write_config(text)
    return None


def require_same_data(run: RunFolder, prepared: PreparedData) -> None:
    """Refuse to take a run for finished that was trained on other data, as resuming it would.

    Raises:
        ConfigError: Naming both fingerprints.
    """
    store = CheckpointStore(run.checkpoints_path, 1, read_only=True)
    fingerprint = None
    with contextlib.suppress(RunError):  # a finished run needs none
        if (newest := store.load_newest(names=[])) is not None:
            fingerprint = newest.value("data.fingerprint", str)
    if fingerprint not in (None, prepared.fingerprint):
        raise ConfigError(
            f"run '{run.name}' was trained on data with fingerprint {fingerprint[:12]}, but "
            f"{prepared.folder} has {prepared.fingerprint[:12]}; choose another name with "
            "run_name=..."
        )
