"""The folder of one run: its name, the paths in it, its configuration and summary."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from files.atomic import write_json, write_text
from files.disk import one_line, write_failure
from files.errors import RunError
from files.regular_file import read_regular_file
from files.typed_json import MAX_BYTES, read_typed, typed
from tracking.run_lock import held

_MAX_NAME_LENGTH = 150
_MAX_SAMPLE_BYTES = 20_000
_MOST_LISTED = 12
_NAME = re.compile(rf"(?!\.)[A-Za-z0-9._=,+-]{{1,{_MAX_NAME_LENGTH}}}")
# What is computed with, or shown as text; versions and the like are only passed on.
_NUMBERS = (
    *("num_parameters", "num_attention_parameters", "tokens_trained", "overfit_batches"),
    *("train_loss", "validation_nll", "validation_perplexity", "validation_bits_per_byte"),
    *("kv_cache_bytes_per_token", "kv_cache_bytes_measured", "cache_ratio_to_mha"),
    *("kv_cache_bytes_at_context", "kv_cache_context", "kv_cache_bytes_read_per_step"),
    *("tokens_per_second", "data_wait_share", "mfu", "peak_memory_bytes", "wall_seconds"),
)
_TEXTS = ("run_name", "attention", "position_embedding", "git_commit")
_Summary = msgspec.defstruct(
    "_Summary",
    [
        ("finished", bool, False),
        *((name, dict | None, None) for name in ("versions", "numerics")),
        *((name, float | None, None) for name in _NUMBERS),
        *((name, str | None, None) for name in _TEXTS),
    ],
)
_WRITE_AGAIN = "remove the file and run the training command again, which writes it"


def without_seed(name: str, seed: int | None = None) -> str:
    """Return what runs of several seeds have in common: a name without its seed.

    Args:
        name: A run's, or that of a folder that one begins with.
        seed: The one to leave out; any if not given.
    """
    number = r"\d+" if seed is None else str(seed)
    return re.sub(rf"(^|[-_.,+=])seed{number}(?![A-Za-z0-9])", "", name)


class RunFolder:
    """Paths and small files of `<runs_dir>/<run_name>`; constructing it creates nothing.

    Attributes:
        name: The run's name.
        path: The run's folder.

    Raises:
        RunError: If the name could leave `runs_dir` or is hard to handle in a shell, or if the
            folder is a link to somewhere else.
    """

    def __init__(self, runs_dir: Path | str, run_name: str) -> None:
        if not _NAME.fullmatch(run_name):
            raise RunError(
                f"run_name {_shortened(run_name)} is not allowed; use 1 to {_MAX_NAME_LENGTH} of "
                "the letters A-Z and a-z, digits and . _ - = , + without a leading dot"
            )
        self.name = run_name
        self.path = Path(runs_dir) / run_name
        if self.path.is_symlink():
            raise RunError(
                f"{self.path} is a symbolic link; remove it, or name the folder that holds the "
                "run as the runs folder"
            )

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """The record of all metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def summary_path(self) -> Path:
        """The summary, written when the run ends."""
        return self.path / "summary.json"

    @property
    def samples_path(self) -> Path:
        """The texts sampled during training."""
        return self.path / "samples.txt"

    def create(self) -> None:
        """Create the folder if it does not exist.

        Raises:
            RunError: If it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(self.path, error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process, in its folder, which is created if need be.

        Raises:
            RunError: At once, if another process (or this one) holds it, naming process and host.
        """
        self.create()
        with held(self.path):
            yield

    def write_config(self, text: str) -> None:
        """Write `config.yaml` atomically, into the folder that `lock` made.

        Raises:
            RunError: If it cannot be written.
        """
        write_text(self.config_path, text)

    def read_sample(self) -> str | None:
        """Return the beginning of what the run wrote at its end; None if it wrote nothing.

        Raises:
            RunError: If it cannot be read, or is no file of the run.
        """
        path = self.samples_path
        try:
            data = read_regular_file(path, MAX_BYTES)
            return data[:_MAX_SAMPLE_BYTES].decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"cannot read {path}: {one_line(error)}") from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json` atomically, into the folder that `lock` made.

        Args:
            summary: Plain JSON; None for a value that is not known.

        Raises:
            RunError: If it cannot be written.
            TypeError: If a value is not plain, finite JSON, naming its key.
        """
        write_json(self.summary_path, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None if the run has not written one.

        Raises:
            RunError: If the file is there and cannot be read, or naming the key, if a value is
                missing or not of the type that is written.
        """
        path = self.summary_path
        if not path.is_symlink() and not path.exists():
            return None
        summary = read_typed(path, dict[str, Any])
        try:
            typed(summary, _Summary, path)
        except RunError as error:
            raise RunError(f"{error}; {_WRITE_AGAIN}") from error
        for key in ("validation_nll", "validation_perplexity"):
            if summary.get("finished") and summary.get(key) is None:
                raise RunError(
                    f"{path} says that the run is finished, but not its {key}; {_WRITE_AGAIN}"
                )
        return summary


def list_finished_runs(runs_dir: Path | str) -> tuple[list[RunFolder], list[str]]:
    """Find the runs whose summary says that they finished.

    Args:
        runs_dir: The folder of all runs. Hidden folders in it are ignored, and so are folders
            without a configuration and a summary.

    Returns:
        The finished runs sorted by name, and one line for each run left out because it is not
        finished or could not be read.

    Raises:
        RunError: If `runs_dir` is not a folder.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        raise RunError(f"{runs_dir} is not a folder; name the folder that holds the runs")
    runs: list[RunFolder] = []
    problems: list[str] = []
    for path in sorted(runs_dir.iterdir(), key=lambda entry: entry.name):
        if path.name.startswith(".") or not any(
            (path / name).exists() for name in ("config.yaml", "summary.json")
        ):
            continue
        try:
            run = RunFolder(runs_dir, path.name)
            summary = run.read_summary()
        except RunError as error:
            problems.append(str(error))
            continue
        if summary is not None and summary.get("finished") is True:
            runs.append(run)
        else:
            problems.append(
                f"{path.name} is not finished; run its training command again to resume it"
            )
    return runs, problems


def names_by_age(runs_dir: Path | str) -> list[str]:
    """Return the names of the runs that have checkpoints, the newest last; [] if none."""
    try:
        found = [
            (checkpoints.stat().st_mtime, checkpoints.parent.name)
            for checkpoints in Path(runs_dir).glob("*/checkpoints")
            if not checkpoints.parent.name.startswith(".") and any(checkpoints.iterdir())
        ]
    except OSError:
        return []
    return [name for _, name in sorted(found)]


def listed(names: Sequence[str]) -> str:
    """Return the newest of names that are sorted by age, and how many more there are."""
    shown = ", ".join(reversed(names[-_MOST_LISTED:]))
    more = len(names) - _MOST_LISTED
    return shown if more <= 0 else f"{shown}, and {more} more"


def _shortened(text: str) -> str:
    """Return the text quoted, on one line and not longer than a message can bear."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}... ({len(text)} characters)"
