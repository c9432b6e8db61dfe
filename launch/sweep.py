"""The runs of a multirun that one process makes in turn: their headings, and a table at the end."""

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files.errors import RunError
from launch.compose import COMPOSING_FAILED, composed
from launch.errors import ConfigError
from launch.failures import EXIT_BAD_INPUT, EXIT_INTERRUPTED, rank_and_size
from launch.keys import look_up
from launch.terminal import columns_of, complain, say
from tracking.progress import in_words
from tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from training.cost_sheet import Cost

_COLUMNS = ("run", "attention", "seed", "perplexity", "KV bytes", "time", "status")
_USUAL_COLUMNS = 80


@dataclass
class _Run:
    """One of the runs, as far as it is known."""

    name: str
    label: str
    attention: str
    seed: object
    swept: str
    folder: RunFolder | None = None
    summary: dict[str, Any] | None = None
    status: str = "not started"
    exit_status: int = 0
    reason: str = ""


class Sweep:
    """What is said of the runs of a multirun.

    Args:
        jobs: The overrides of each.
        trains: Whether they are trainings, which end in a table.
    """

    def __init__(self, jobs: Sequence[Sequence[str]], *, trains: bool) -> None:
        everywhere = set.intersection(*map(set, jobs)) if jobs else set()
        self._swept = [[text for text in job if text not in everywhere] for job in jobs]
        self._trains = trains
        self._runs: list[_Run] = []
        self._said: set[str] = set()
        self._costs: dict[str, Cost] = {}

    def begin(self, name: str, attention: str, seed: object) -> None:
        """Say which run comes now, and about how long this one and those behind it will take."""
        number, total = len(self._runs) + 1, max(len(self._swept), len(self._runs) + 1)
        swept = self._swept[number - 1] if number <= len(self._swept) else []
        times = [run.summary["wall_seconds"] for run in self._runs if run.summary]
        left = sum(times) / len(times) * (total - number + 1) if times else None
        estimate = "" if left is None else f" (about {in_words(left)} left)"
        label = " ".join(swept) or name
        self._runs.append(_Run(name, name or label, attention, seed, label))
        if rank_and_size()[0] == 0:
            before = "\n" if number > 1 else ""
            say(f"{before}run {number} of {total}: {label}{estimate}")

    def train(self, runs_path: Path) -> None:
        """Note where the run that comes now is, and whether it is finished."""
        run = self._runs[-1]
        run.folder = RunFolder(runs_path, run.name)
        run.summary = _summary(run.folder)
        run.status = "done before" if run.summary else "interrupted"

    def expect(self, costs: "Mapping[str, Cost]") -> None:
        """Note what runs would take, by name: a sweep of dry runs ends in the total."""
        self._costs |= costs

    def end(self, exit_status: int, reason: str) -> None:
        """Note how the run ended."""
        run = self._runs[-1]
        run.exit_status, run.reason = exit_status, " ".join(reason.split())
        if exit_status:
            if exit_status == EXIT_BAD_INPUT:
                run.summary = None  # of another run, whose name this one has
            run.status = "interrupted" if exit_status == EXIT_INTERRUPTED else "failed"
        elif run.status != "done before":
            run.status = "done"
            run.summary = _summary(run.folder) if run.folder else None

    def is_repeated(self, text: str) -> bool:
        """Tell whether another run has said the same, but for its name, and remember it."""
        run = self._runs[-1]
        key = text.replace(run.name, "")
        is_repeated = key in self._said
        self._said.add(key)
        return is_repeated

    def conclude(self) -> None:
        """Lay out the runs in a table, and repeat why some failed."""
        if rank_and_size()[0] > 0 or not self._runs:
            return
        if self._costs:
            from training.cost_sheet import total

            everything = total(self._costs.values()).describe()
            say(f"\nin total, {len(self._costs)} runs in turn: {everything}")
        elif self._trains:
            say(f"\n{self._table()}")
        if len({run.label for run in self._runs}) < len(self._runs):  # of one name
            for run in self._runs:
                run.label = run.swept
        failed = [run for run in self._runs if run.status == "failed"]
        if not failed:
            return
        for reason in dict.fromkeys(run.reason for run in failed):
            complain(f"{_labels(failed, reason)} failed: {reason}")
        is_bad_input = all(run.exit_status == EXIT_BAD_INPUT for run in failed)
        complain(
            f"{len(failed)} of {len(self._runs)} runs failed: {_labels(failed)}; "
            + ("correct that, then " if is_bad_input else "")
            + "the same command tries them again"
        )

    def _table(self) -> str:
        from tabulate import tabulate

        unseen = len(self._swept) - len(self._runs)
        rows = [_row(run) for run in self._runs]
        rows += [["", "", "", "-", "-", "-", "not started"]] * unseen
        align = ["left", "left", *["right"] * 4, "left"]
        for _ in range(2):
            table = tabulate(rows, headers=_COLUMNS, colalign=align, disable_numparse=True)
            if len(table.splitlines()[1]) <= (columns_of(sys.stdout) or _USUAL_COLUMNS):
                break
            # Its number, which the heading had, in place of a name that does not fit.
            rows = [[str(number), *row[1:]] for number, row in enumerate(rows, start=1)]
        return table


def require_names(jobs: Sequence[Sequence[str]]) -> None:
    """Refuse a sweep in which a training would have the name of another.

    Args:
        jobs: The overrides of each.

    Raises:
        ConfigError: With a name that tells the runs apart.
    """
    names = []
    for job in jobs:
        try:
            names.append(str(composed("train", list(job)).run_name))
        except COMPOSING_FAILED:  # which the run itself will say
            names.append("")
    name = next((one for one in names if one and names.count(one) > 1), None)
    if name is None:
        return
    keys = [key for key in _swept_keys(jobs) if _may_name(key)]
    parts = "".join(f"-{key.rpartition('.')[2]}${{{key}}}" for key in keys)
    arranged = any(one.startswith("layers") for one in itertools.chain(*jobs))
    begin = "${model.attention.name}" + ("-${layers.name}" if arranged else "")
    meant = f": 'run_name={begin}{parts}-seed${{seed}}'" if parts else ""
    raise ConfigError(
        f"{names.count(name)} of the {len(jobs)} runs would be called '{name}'; let run_name tell "
        f"them apart{meant}"
    )


@contextlib.contextmanager
def leaving_nothing(jobs: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield what has a sweep of dry runs leave no folder behind; nothing for other sweeps.

    Hydra writes what it was given into the folder of a sweep.

    Args:
        jobs: The overrides of each training of this process.
    """
    try:
        is_dry = bool(jobs) and composed("train", list(jobs[0])).dry_run is True
    except COMPOSING_FAILED:  # which the run itself will say
        is_dry = False
    with tempfile.TemporaryDirectory() if is_dry else contextlib.nullcontext() as folder:
        yield [f"hydra.sweep.dir={folder}"] if folder else []


def _swept_keys(jobs: Sequence[Sequence[str]]) -> list[str]:
    everywhere = set.intersection(*map(set, jobs))
    return list(dict.fromkeys(one.partition("=")[0] for one in jobs[0] if one not in everywhere))


def _may_name(key: str) -> bool:
    known = look_up("train", key)
    short = ("int", "float", "bool", "word", "other")
    return known is not None and known.kind in short and not known.is_list and key != "seed"


current: Sweep | None = None
"""The one that this process makes; None where there is a single run."""


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """Return what a finished run measured; None if it is not finished, or cannot be read."""
    try:
        found = folder.read_summary()
    except RunError:
        return None
    needed = ("finished", "wall_seconds", "kv_cache_bytes_per_token")
    return found if found and all(found.get(key) is not None for key in needed) else None


def _row(run: _Run) -> list[str]:
    seed = "" if run.seed is None else str(run.seed)
    if run.summary is None:
        return [run.name, run.attention, seed, "-", "-", "-", run.status]
    return [
        *(run.name, run.attention, seed),
        f"{run.summary['validation_perplexity']:.2f}",
        _cache(run.summary),
        *(_clock(run.summary["wall_seconds"]), run.status),
    ]


def _cache(summary: Mapping[str, Any]) -> str:
    """Show the cache at the run's context, or by token where an older run says no more."""
    known = summary.get("kv_cache_bytes_at_context")
    return f"{summary['kv_cache_bytes_per_token']:,}/token" if known is None else f"{known:,}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _labels(runs: Sequence[_Run], reason: str | None = None) -> str:
    """Name runs, all or those that failed for one reason."""
    return ", ".join(run.label for run in runs if reason in (None, run.reason))
