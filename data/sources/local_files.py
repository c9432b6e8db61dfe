"""Finding files on this machine: which are read, in which format, for which split."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from data.errors import DataError
from data.sources.compressed import COMPRESSED, compression_of
from data.sources.file_kinds import HEAD_BYTES, foreign_kind
from data.splits import TEST, TRAIN, VALIDATION
from settings.data import DataSettings

_FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
_KNOWN = f"{', '.join(_FORMATS)}, all but parquet also as {', '.join(COMPRESSED)}"
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
# Those of the Hugging Face Hub, with the separators that it documents: -, _, ., space and digits.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
_SEPARATORS = re.compile(r"[-_. 0-9]+")
_NUMBERED = re.compile(r"(.*?)(\d{2,5})([-_]of[-_])(\d{2,5})(\D.*|)")
_MAX_LISTED = 8


class LocalFile(NamedTuple):
    """A file to read, its format and the split that its name says."""

    relative: str
    path: Path
    format: str
    split: str


class FoundFiles(NamedTuple):
    """Files of a folder, in order: those to read, and the names of all others."""

    used: list[LocalFile]
    unused: list[str]


def _format_of(path: Path) -> str | None:
    """Return the format of a file, which may be compressed; None if it is of none."""
    if compression_of(path):
        found = _FORMATS.get(Path(path.stem).suffix.lower())
        return None if found == "parquet" else found
    return _FORMATS.get(path.suffix.lower())


def split_of_name(relative: str) -> str:
    """Return the split by a file's path inside its folder.

    A split's keyword (train, training; validation, valid, val, dev; test, testing, eval,
    evaluation) in any case counts where it is a whole word of the file's name, that is next to its
    ends, '-', '_', '.', a space or a digit; else where a folder's name holds it so; all other files
    are training text. "my_test_part2.txt", "Test1.txt" and "eval/a.txt" are test, "contest.txt" is
    train.
    """
    *folders, name = relative.split("/")
    for part in (name.rpartition(".")[0], *reversed(folders)):
        for word in _SEPARATORS.split(part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return TRAIN


def find_files(settings: DataSettings) -> FoundFiles:
    """List the files of `data.path`, sorted by relative path, without reading them.

    Raises:
        DataError: If the path does not exist or has no file of a known type.
    """
    try:
        return _find_files(Path(str(settings.path)).expanduser())
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.path: cannot read {settings.path} ({error})") from error


def _find_files(root: Path) -> FoundFiles:
    if root.is_file():
        found = _format_of(root)
        if found is None:
            raise DataError(f"data.path: {root} is of unknown type{_way_out(root)}")
        return FoundFiles([LocalFile(root.name, root, found, TRAIN)], [])
    if not root.is_dir():
        if root.exists():
            raise _not_a_file(root)
        raise DataError(f"data.path: no such file or folder: {root}")
    used, unused = [], []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        # They are not followed: they may lead round in circles.
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*names, *linked]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            hidden = any(part.startswith(".") for part in relative.split("/"))
            found = _format_of(path)
            if hidden or found is None or not path.is_file():
                unused.append(relative)
            else:
                used.append(LocalFile(relative, path, found, split_of_name(relative)))
    if not used:
        archives = [name for name in unused if name.lower().endswith(_ARCHIVES)]
        raise DataError(
            f"data.path: no file to read in {root}; known types are {_KNOWN}"
            + (f"; found {shortened(unused)}" if unused else "")
            + ("; unpack the archives first" if archives else "")
        )
    return FoundFiles(sorted(used), sorted(unused))


def _not_a_file(root: Path) -> DataError:
    if stat.S_ISFIFO(root.stat().st_mode):
        return DataError(
            f"data.path: {root} is a pipe, which can be read only once, and a preparation reads "
            "its text more than once; write it to a file first: COMMAND > text.txt"
        )
    return DataError(f"data.path: {root} is neither a file nor a folder")


def _way_out(path: Path) -> str:
    """Say what to do with a file of unknown type."""
    if path.name.lower().endswith(_ARCHIVES):
        return ", an archive; unpack it and set data.path to the folder"
    with path.open("rb") as file:
        kind = foreign_kind(file.read(HEAD_BYTES))
    return f"; it {kind}" if kind else f"; known are {_KNOWN}: rename it (plain text: .txt)"


def shortened(names: list[str]) -> str:
    """Join names, the first few of many."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def missing_of_series(names: list[str]) -> list[str]:
    """Name what is absent of files that count themselves, as in x-00001-of-00003.jsonl."""
    series: dict[tuple[str, ...], set[int]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            before, number, of, total, after = found.groups()
            series.setdefault((before, of, total, after), set()).add(int(number))
    missing = []
    for (before, of, total, after), there in series.items():
        # Some count from 0, some from 1.
        first = int(int(total) in there and 0 not in there)
        absent = sorted({*range(first, first + int(total))} - there)
        missing += [f"{before}{number:0{len(total)}d}{of}{total}{after}" for number in absent]
    return missing
