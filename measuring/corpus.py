"""The data that a run was trained on, found by what it holds, wherever it lies now."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.prepared import PreparedData
from files.errors import RunError
from measuring.errors import EvaluationError
from settings.data import DataSettings, TokenizerSettings
from tracking.configuration import flat, read_configuration
from tracking.run_folder import RunFolder

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = ("prepared_dir", "num_workers")


def find_prepared(run: RunFolder, trained_on: Mapping[str, str]) -> PreparedData:
    """Open the data that a run was trained on.

    Where it was is looked at first, then where prepared data are kept: next to it, in this
    repository, and where both were moved together with the run.

    Args:
        run: Which.
        trained_on: Of its checkpoint: "folder", "fingerprint" and "tokenizer_sha256".

    Raises:
        DataError: If it is damaged.
        EvaluationError: If it is gone or another.
    """
    folder = Path(trained_on["folder"])
    recorded: dict[str, Any] = {}
    with suppress(RunError):  # it only says where else to look
        recorded = read_configuration(run.config_path)
    problem: DataError | EvaluationError | None = None
    if folder.is_dir():
        try:
            prepared = PreparedData(folder)
            problem = _mismatch(run, trained_on, prepared)
        except DataError as error:
            problem = error
        else:
            if problem is None:
                return prepared
    for other in _others(run, folder, recorded):
        try:
            prepared = PreparedData(other)
        except DataError:
            continue
        if _mismatch(run, trained_on, prepared) is None:
            return prepared
    again = f"prepare it again: {prepare_command(recorded)}" if recorded else "prepare it again"
    if isinstance(problem, EvaluationError):
        raise EvaluationError(f"{problem}; bring that back, or {again}")
    raise problem or EvaluationError(
        f"{run.name} was trained on the data in {folder}, which is not there; bring it back, or "
        f"{again}"
    )


def _mismatch(
    run: RunFolder, trained_on: Mapping[str, str], prepared: PreparedData
) -> EvaluationError | None:
    """Return what to say of data that are not a run's; None if they are."""
    for what, theirs, ours in (
        ("with another tokenizer", trained_on["tokenizer_sha256"], prepared.tokenizer_sha256),
        ("on other data", trained_on["fingerprint"], prepared.fingerprint),
    ):
        if ours != theirs:
            return EvaluationError(
                f"{run.name} was trained {what} than {prepared.folder} now holds (fingerprint "
                f"{theirs[:12]}, not {ours[:12]})"
            )
    return None


def _others(run: RunFolder, folder: Path, recorded: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the prepared folders in which a run's data may be now, those of its name first."""
    here = run.path.resolve()
    parents = [folder.parent, _ROOT / "data" / "prepared"]
    parents += [above / "data" / "prepared" for above in here.parents]
    # Where a folder with both in it was moved.
    then = Path(str(recorded.get("runs_dir") or ""))
    for now in here.parents:
        if then.name and now.name == then.name:
            for old, new in zip(then.parents, now.parents, strict=False):
                if folder.is_relative_to(old):
                    parents.append((new / folder.relative_to(old)).parent)
    parents = [parent for parent in dict.fromkeys(parents) if parent.is_dir()]
    yield from (parent / folder.name for parent in parents if (parent / folder.name).is_dir())
    for parent in parents:
        try:
            children = sorted(parent.iterdir())
        except OSError:
            continue
        for child in children:
            if child.name != folder.name and (child / "manifest.json").is_file():
                yield child


def prepare_command(recorded: Mapping[str, Any]) -> str:
    """Return the command that prepares a run's data again.

    Args:
        recorded: Its configuration, with dotted keys.
    """
    command = ["python", "prepare_data.py"]
    for group, schema in (("data", DataSettings), ("tokenizer", TokenizerSettings)):
        mine = {k: v for k, v in recorded.items() if k.startswith(f"{group}.")}
        kind = mine.get("data.source" if group == "data" else "tokenizer.kind")
        names = [str(name) for name in (mine.get(f"{group}.name"), kind)]
        name = next((n for n in names if (_ROOT / "conf" / group / f"{n}.yaml").is_file()), None)
        if name is None:
            continue
        command.append(f"{group}={name}")
        for key, value in mine.items():
            *within, field = key.removeprefix(f"{group}.").split(".")
            chosen = within[-1] if within else name
            if field not in _PLACES and value != _default(group, chosen, field, schema):
                command.append(f"{key}={_as_typed(value)}")
    return shlex.join(command)


def _default(group: str, name: str, field: str, schema: type) -> Any:
    """Return what a file in conf/ says of a key, or else its schema."""
    path = _ROOT / "conf" / group / f"{name}.yaml"
    values = flat(_read_yaml(path)) if path.is_file() else {}
    defaults = flat(dataclasses.asdict(schema()))
    return values.get(field, defaults.get(field))


def _read_yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(OmegaConf.load(path))
    return found


def _as_typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
