"""Files on this machine: parquet, JSON and text, every one used or named."""

import glob
import json
import os
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError
from data.settings import DataSettings
from data.sources import TEST, TRAIN, VALIDATION, Corpus, Document, Part, choose_splits, join_rows

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
_SPLIT_WORDS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "test": TEST,
}
_MAX_LISTED = 8


class LocalFile(NamedTuple):
    """A file to read, the datasets builder for it and the split that its name says."""

    relative: str
    path: Path
    builder: str
    split: str


class FoundFiles(NamedTuple):
    """Files of a folder, in order: those to read, and the names of all others."""

    used: list[LocalFile]
    unused: list[str]


def split_of_name(relative: str) -> str:
    """Tell the split from a file's path inside its folder.

    A split's name (train, validation, valid, val, test) counts where it is a whole word of the
    file's name, that is next to its ends, '-', '_' or '.'; else where a folder bears it; all other
    files are training text. "my_test_part2.txt" and "test/a.txt" are test, "contest.txt" is train.
    """
    *folders, name = relative.split("/")
    words = re.split(r"[-_.]", name.rpartition(".")[0])
    for word in (*words, *reversed(folders)):
        if word in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return TRAIN


def find_files(settings: DataSettings) -> FoundFiles:
    """List the files of `data.path`, sorted by relative path, without reading them.

    Raises:
        DataError: If the path does not exist or has no file of a known type.
    """
    root = Path(str(settings.path)).expanduser()
    known = ", ".join(_BUILDERS)
    if root.is_file():
        if root.suffix not in _BUILDERS:
            raise DataError(f"data.path: {root} is of unknown type; known are {known}")
        return FoundFiles([LocalFile(root.name, root, _BUILDERS[root.suffix], TRAIN)], [])
    if not root.is_dir():
        raise DataError(f"data.path: no such file or folder: {root}")
    used, unused = [], []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            hidden = any(part.startswith(".") for part in relative.split("/"))
            if hidden or path.suffix not in _BUILDERS:
                unused.append(relative)
            else:
                split = split_of_name(relative)
                used.append(LocalFile(relative, path, _BUILDERS[path.suffix], split))
    if not used:
        raise DataError(
            f"data.path: no file to read in {root}; known types are {known}"
            + (f"; found {_shortened(unused)}" if unused else "")
        )
    return FoundFiles(sorted(used), sorted(unused))


def _shortened(names: list[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _bad_text(value: Any) -> str | None:
    """Say what is wrong with a value of the text column; None if nothing."""
    if value is None:
        return "is null"
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not a string"
    return None


def _locate_json_error(path: Path, column: str) -> str | None:
    """Find the first line that is no JSON object with a text; the builder names none or a block."""
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(1) in (b"[", b"{"):
            file.seek(0)
            try:
                json.loads(file.read())
            except json.JSONDecodeError as error:
                if not (error.msg == "Extra data" and error.lineno > 1):
                    return f"line {error.lineno}: {error.msg}"
            except UnicodeDecodeError as error:
                return f"byte {error.start} is not UTF-8"
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {column: ""}
                if not isinstance(row, dict):
                    return f"line {number} is no JSON object"
                problem = _bad_text(row[column])
                if problem:
                    return f"line {number}: {column!r} {problem}"
                str(row[column]).encode()
            except json.JSONDecodeError as error:
                return f"line {number}: {error.msg}"
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8"
            except UnicodeEncodeError:
                return f"line {number}: {column!r} holds half of a surrogate pair"
            except KeyError:
                return f"line {number} has no {column!r}"
    return None


def _locate_text_error(path: Path) -> str | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8; convert the file"
    return None


def _explain(file: LocalFile, column: str, error: BaseException) -> str:
    found = None
    if file.builder == "json":
        found = _locate_json_error(file.path, column)
    elif file.builder == "text":
        found = _locate_text_error(file.path)
    return (
        f"{file.path}: {found or f'cannot be read as {file.builder}: {error.__cause__ or error}'}"
    )


def _rows(file: LocalFile, settings: DataSettings) -> Iterator[Document]:
    import datasets

    if file.builder != "text" and file.path.stat().st_size == 0:
        raise DataError(f"{file.path} is empty; restore or remove it")
    column = "text" if file.builder == "text" else settings.text_column
    options: dict[str, Any] = {}
    if file.builder == "text":
        by_line = settings.document_start is not None
        options = {"keep_linebreaks": True} if by_line else {"sample_by": "document"}
    number = 0
    try:
        # Streaming copies nothing, but the builder insists on a folder for its lock.
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(
                file.builder,
                # A data file is a pattern to datasets: an unescaped '[' would match no file.
                data_files={TRAIN: [glob.escape(str(file.path.absolute()))]},
                split=TRAIN,
                streaming=True,
                cache_dir=cache,
                **options,
            )
            for batch in rows.iter(batch_size=1000):
                if column not in batch:
                    raise DataError(
                        f"{file.path} has no column {column!r}; its columns are "
                        f"{', '.join(batch)}: set data.text_column"
                    )
                for value in batch[column]:
                    number += 1
                    problem = _bad_text(value)
                    if problem:
                        raise DataError(
                            f"{file.path} row {number}: {column!r} {problem}; correct or remove it"
                        )
                    yield Document(value, f"{file.path} row {number}")
    except DataError:
        raise
    except Exception as error:
        raise DataError(_explain(file, column, error)) from error
    if number == 0 and file.builder != "text":
        raise DataError(f"{file.path} holds no rows; restore or remove it")


def _documents(files: list[LocalFile], settings: DataSettings) -> Iterator[Document]:
    # File by file, so that formats may differ and an error names its file.
    for file in files:
        yield from join_rows(_rows(file, settings), settings.document_start)


def open_local(settings: DataSettings) -> Corpus:
    """Open a file or folder; `split_of_name` says which file goes to which split.

    Raises:
        DataError: If there is nothing to read or a split is missing.
    """
    files, unused = find_files(settings)
    by_split: dict[str, list[LocalFile]] = {}
    for file in files:
        by_split.setdefault(file.split, []).append(file)
    chosen = choose_splits(settings, by_split)
    for name in by_split.keys() - chosen.keys():
        unused += [file.relative for file in by_split[name]]
    notes = []
    if unused:
        notes.append(f"not used in {settings.path}: {_shortened(sorted(unused))}")
    if len(files) > 1:
        counts = ", ".join(f"{name} {len(some)}" for name, some in by_split.items())
        notes.append(f"files per split in {settings.path}: {counts}")
    return Corpus(
        parts=[
            Part(split, partial(_documents, by_split[name], settings))
            for name, split in chosen.items()
        ],
        validation_fraction=settings.validation_fraction,
        description={
            "source": "local",
            "path": settings.path,
            "files": [
                {"file": file.relative, "split": name, "bytes": file.path.stat().st_size}
                for name, some in by_split.items()
                if name in chosen
                for file in some
            ],
            "unused_files": sorted(unused),
        },
        notes=notes,
    )
