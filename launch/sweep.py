"""The runs of a sweep: their names, their headings, and a table at the end."""

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from files.errors import RunError
from launch.compose import composed
from launch.errors import ConfigError
from launch.failures import EXIT_BAD_INPUT, EXIT_INTERRUPTED, rank_and_size
from launch.keys import look_up
from launch.terminal import columns_of, complain, say
from modeling.config import arrangement_label
from tracking.notices import aligned
from tracking.progress import in_words
from tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from training.cost_sheet import Cost

_COLUMNS = ("run", "attention", "seed", "perplexity", "KV bytes", "time", "status")
_TEXTS = (0, 1, 6)  # run, attention, status
_USUAL_COLUMNS = 80


@dataclass
class Run:
    """A run of a sweep, as far as it is known.

    Args:
        config: As it was composed.
        swept: The arguments in which it differs from the others.
        trains: Whether it is a training, which has a folder.
    """

    config: DictConfig
    swept: str
    trains: bool
    status: str = "not started"
    exit_status: int = 0
    reason: str = ""
    summary: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name; '' where it has none, or it cannot be worked out."""
        return str(self.value("run_name") or "")

    @property
    def label(self) -> str:
        """What it is called when its errors are reported."""
        return self.name or self.swept

    @property
    def folder_of_runs(self) -> Path:
        """The folder that its own is in."""
        return Path(str(self.value("runs_dir")), str(self.value("study") or ""))

    @property
    def attention(self) -> str:
        """Its attention, and the arrangement of its layers if that is not uniform."""
        layers = self.value("layers")
        label = arrangement_label(layers) if layers else None
        return "-".join(filter(None, [str(self.value("model.attention.name") or ""), label]))

    def read_summary(self) -> dict[str, Any] | None:
        """Return what a finished training measured; None if it is not, or cannot be read."""
        needed = ("finished", "wall_seconds", "kv_cache_bytes_per_token")
        if not self.trains:
            return None
        try:
            found = RunFolder(self.folder_of_runs, self.name).read_summary()
        except RunError:
            return None
        return found if found and all(found.get(key) is not None for key in needed) else None

    def begin(self) -> None:
        """Note that it begins, or was finished before."""
        self.summary = self.read_summary()
        self.status = "done before" if self.summary else "interrupted"

    def in_short(self) -> str:
        """Say in a few words what came out."""
        if self.summary is None:
            return self.status
        perplexity = f"validation perplexity {self.summary['validation_perplexity']:.2f}"
        return f"{self.status}, {perplexity}, trained in {in_words(self.summary['wall_seconds'])}"

    def row(self, number: str | None = None) -> list[str]:
        """Return its row of the table at the end, with its number in place of its name if given."""
        seed = self.value("seed")
        begin = [number or self.name, self.attention, "" if seed is None else str(seed)]
        if self.summary is None:
            return [*begin, "-", "-", "-", self.status]
        perplexity = f"{self.summary['validation_perplexity']:.2f}"
        time = _clock(self.summary["wall_seconds"])
        return [*begin, perplexity, _cache(self.summary), time, self.status]

    def value(self, key: str) -> Any:
        """Return a value, if it can be worked out of what is not checked yet; else None."""
        try:
            return OmegaConf.select(self.config, key)
        except OmegaConfBaseException:
            return None


Outcome = tuple[int, str]
"""An exit status, and why it is not 0."""
Maker = Callable[[Run], Outcome]


class Sweep:
    """What is said of the runs of a sweep.

    Args:
        config_name: Of the entry point.
        jobs: The overrides of each run.

    Raises:
        ConfigError: If trainings would have the same name.
    """

    def __init__(self, config_name: str, jobs: Sequence[Sequence[str]]) -> None:
        self._trains = config_name == "train"
        configs = [composed(config_name, list(job)) for job in jobs]
        everywhere = set.intersection(*map(set, jobs))
        swept = [" ".join(text for text in job if text not in everywhere) for job in jobs]
        self.runs = [Run(*one, self._trains) for one in zip(configs, swept, strict=True)]
        if self._trains:
            _require_names(jobs, [run.name for run in self.runs])
        self._current = self.runs[0]
        self._said: set[str] = set()
        self._costs: dict[str, Cost] = {}

    def begin(self, run: Run) -> None:
        """Say which run comes now, and about how long this one and those behind it will take."""
        number, total = self.runs.index(run) + 1, len(self.runs)
        times = [one.summary["wall_seconds"] for one in self.runs if one.summary]
        left = sum(times) / len(times) * (total - number + 1) if times else None
        estimate = "" if left is None else f" (about {in_words(left)} left)"
        self._current = run
        run.begin()
        if rank_and_size()[0] == 0:
            before = "\n" if number > 1 else ""
            say(f"{before}run {number} of {total}: {run.swept or run.name}{estimate}")

    def end(self, run: Run, exit_status: int, reason: str) -> None:
        """Note how a run ended."""
        run.exit_status, run.reason = exit_status, " ".join(reason.split())
        if exit_status:
            if exit_status == EXIT_BAD_INPUT:
                run.summary = None  # of another run, whose name this one has
            run.status = "interrupted" if exit_status == EXIT_INTERRUPTED else "failed"
        elif run.status != "done before":
            run.status, run.summary = "done", run.read_summary()

    def expect(self, costs: "Mapping[str, Cost]") -> None:
        """Note what runs would take, by name: a sweep of dry runs ends in the total."""
        self._costs |= costs

    def is_repeated(self, text: str) -> bool:
        """Tell whether another run has said the same, but for its name, and remember it."""
        key = text.replace(self._current.name, "")
        is_repeated = key in self._said
        self._said.add(key)
        return is_repeated

    def conclude(self) -> int:
        """Lay out the runs in a table, repeat why some failed, and return the exit status."""
        status = max(run.exit_status for run in self.runs)
        if rank_and_size()[0] > 0:
            return status
        if self._costs:
            from training.cost_sheet import total

            everything = total(self._costs.values()).describe()
            say(f"\nin total, {len(self._costs)} runs in turn: {everything}")
        elif self._trains:
            say(f"\n{self._table()}")
        failed = [run for run in self.runs if run.status == "failed"]
        for reason in dict.fromkeys(run.reason for run in failed):
            complain(f"{_labels(run for run in failed if run.reason == reason)} failed: {reason}")
        if failed:
            made = sum(run.status != "not started" for run in self.runs)
            is_bad_input = all(run.exit_status == EXIT_BAD_INPUT for run in failed)
            complain(
                f"{len(failed)} of {made} runs failed: {_labels(failed)}; "
                + ("correct that, then " if is_bad_input else "")
                + "the same command tries them again"
            )
        return status

    def _table(self) -> str:
        columns = columns_of(sys.stdout) or _USUAL_COLUMNS
        drawn = _laid_out([run.row() for run in self.runs])
        if len(drawn.splitlines()[1]) <= columns:
            return drawn
        # Its number, which the heading had, in place of a name that does not fit.
        rows = [run.row(str(number)) for number, run in enumerate(self.runs, start=1)]
        return _laid_out(rows)


def _laid_out(rows: Sequence[Sequence[str]]) -> str:
    rule = ["-" * max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    return aligned([_COLUMNS, rule, *rows], _TEXTS)


def _require_names(jobs: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Refuse a sweep in which a training would have the name of another.

    Args:
        jobs: The overrides of each.
        names: Of each; '' where it cannot be worked out, which the run itself will say.

    Raises:
        ConfigError: With a name that tells the runs apart.
    """
    name = next((one for one in names if one and names.count(one) > 1), None)
    if name is None:
        return
    everywhere = set.intersection(*map(set, jobs))
    swept = dict.fromkeys(one.partition("=")[0] for one in jobs[0] if one not in everywhere)
    parts = "".join(f"-{key.rpartition('.')[2]}${{{key}}}" for key in swept if _may_name(key))
    arranged = any(one.startswith("layers") for one in itertools.chain(*jobs))
    begin = "${model.attention.name}" + ("-${layers.name}" if arranged else "")
    meant = f": 'run_name={begin}{parts}-seed${{seed}}'" if parts else ""
    raise ConfigError(
        f"{names.count(name)} of the {len(jobs)} runs would be called '{name}'; let run_name tell "
        f"them apart{meant}"
    )


def _may_name(key: str) -> bool:
    known = look_up("train", key)
    short = ("int", "float", "bool", "word", "other")
    return known is not None and known.kind in short and not known.is_list and key != "seed"


current: Sweep | None = None
"""The one whose runs this process makes; None where there is a single run."""


def _cache(summary: Mapping[str, Any]) -> str:
    """Show the cache at the run's context, or by token where an older run says no more."""
    known = summary.get("kv_cache_bytes_at_context")
    return f"{summary['kv_cache_bytes_per_token']:,}/token" if known is None else f"{known:,}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _labels(runs: Iterable[Run]) -> str:
    return ", ".join(run.label for run in runs)
