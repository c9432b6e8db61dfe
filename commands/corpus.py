"""The prepared corpus of a run."""

from pathlib import Path

from data.errors import DataError
from data.pipeline import prepare
from data.prepared import PreparedData
from files.errors import RunError
from launch import terminal
from launch.schemas import TrainConfig
from measuring.corpus import find_prepared
from measuring.errors import EvaluationError
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder


def prepared_for(config: TrainConfig) -> PreparedData:
    """Prepare the data; where the texts are gone, a run that has begun resumes on what it had.

    Raises:
        DataError: If the texts cannot be prepared.
    """
    try:
        return prepare(config.data, config.tokenizer, terminal.say)
    except DataError:
        corpora = [config.data, *config.data.corpora.values()]
        local = [Path(str(some.path)).expanduser() for some in corpora if some.source == "local"]
        if all(path.exists() for path in local) or (found := _begun_on(config)) is None:
            raise
    terminal.say(
        f"{config.run_name}: its texts are gone; it uses the data prepared in {found.folder}"
    )
    return found


def _begun_on(config: TrainConfig) -> PreparedData | None:
    """Find the data that a run has begun on by their hash; None if there are none."""
    run = RunFolder(config.runs_path, config.run_name)
    try:
        newest = CheckpointStore(run.checkpoints_path, 1, read_only=True).load_newest(names=[])
        if newest is None:
            return None
        keys = ("folder", "fingerprint", "tokenizer_sha256")
        return find_prepared(run, {key: newest.value(f"data.{key}", str) for key in keys})
    except (EvaluationError, RunError):
        return None
