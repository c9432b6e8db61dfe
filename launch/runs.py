"""Runs as a user names them: by name, by wildcards, or by the folder that the tab key completes."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.errors import ConfigError
from launch.keys import choices
from tracking.run_folder import RunFolder, listed, names_by_age


def located(runs_path: Path, names: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder that runs are in, and their names in it.

    Args:
        runs_path: Where names without a folder are.
        names: Names, or paths such as runs/NAME/, with * and ? as wildcards.

    Raises:
        ConfigError: If they are in several folders.
    """
    folders: dict[Path, Path] = {}
    found = []
    for name in names:
        path = Path(name).expanduser()
        if path.name == "checkpoints" and "/" in name:  # the tab key continues to what is in a run
            path = path.parent
            name = str(path)
        folder = runs_path
        if "/" in name:
            # Of a study, by what follows runs_dir.
            inside = runs_path / path
            is_inside = not path.is_absolute() and inside.parent.is_dir()
            folder = inside.parent if is_inside and not path.parent.is_dir() else path.parent
        folders.setdefault(folder.resolve(), folder)
        found.append(path.name if "/" in name else name)
    if len(folders) > 1:
        several = ", ".join(map(str, folders.values()))
        raise ConfigError(f"run names runs of several folders ({several}); name those of one")
    resolved, folder = next(iter(folders.items()), (runs_path.resolve(), runs_path))
    return (runs_path if resolved == runs_path.resolve() else folder), found


def find_run(runs_path: Path, name: str | None, say: Callable[[str], None]) -> RunFolder:
    """Return the run that is meant; the newest, which is said, if none is named.

    Args:
        runs_path: Where runs are.
        name: As in `located`.
        say: Receives the line.

    Raises:
        ConfigError: If there is none, or several, listing those that there are.
        RunError: If the name is no name.
    """
    folder, names = located(runs_path, [] if name is None else [name])
    wanted = names[0] if names else "*"
    run = None
    if not re.search(r"[*?\[]", wanted):
        if "/" in str(name) and folder != runs_path and not (folder / wanted).is_dir():
            folder, wanted = runs_path, str(name)
        run = RunFolder(folder, wanted)  # refuses what is no name, and a link
    there = names_by_age(folder)
    if run is not None and wanted in there:
        return run
    if not there:
        train = "train one: python train_model.py attention=mla"
        raise ConfigError(f"there is no run in {folder}; {train}")
    if name is None:
        say(f"run={there[-1]}, the newest in {folder}")
        return RunFolder(folder, there[-1])
    matching = fnmatch.filter(there, wanted)
    if len(matching) == 1:
        say(f"run={matching[0]}")
        return RunFolder(folder, matching[0])
    if matching:
        several = f"run ('{wanted}') is the name of several"
        raise ConfigError(f"{several}; take one of: {listed(matching)}")
    near = [one for one in there if one.startswith(wanted)]
    near = near[-1:] or difflib.get_close_matches(wanted, there, n=1)
    hint = f"; did you mean run={near[0]}? There" if near else "; there"
    what = "has no checkpoint" if (folder / wanted).exists() else "is not there"
    raise ConfigError(f"run ('{wanted}') {what} in {folder}{hint} are: {listed(there)}")


def require_study(runs_dir: Path, study: str) -> None:
    """Refuse a study that nobody has trained and no file of conf/experiment/ describes.

    Raises:
        ConfigError: Listing those that there are.
    """
    trained = sorted({path.parent.parent.name for path in runs_dir.glob("*/*/checkpoints")})
    known = sorted({*trained, *(one for one in choices("experiment") if one.startswith("study_"))})
    if study in known or (runs_dir / study).is_dir():
        return
    near = difflib.get_close_matches(study, known, n=1)
    hint = f"did you mean experiment={near[0]}? There" if near else "there"
    raise ConfigError(f"there is no study '{study}'; {hint} are {', '.join(known)}")
