"""Files on this machine: parquet, JSON and text, every one used or named."""

import contextlib
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError
from data.files import sha256_of_file
from data.rows import ROWS_AT_ONCE, RowTexts, bad_text
from data.settings import DataSettings
from data.sources import TEST, TRAIN, VALIDATION, Corpus, Document, Part, choose_splits, join_rows

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Text and JSON become about a quarter; only an estimate hangs on it.
_COMPRESSION_RATIO = 4
_SPLIT_WORDS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "test": TEST,
}
_NUMBERED = re.compile(r"(.*?)(\d{2,5})([-_]of[-_])(\d{2,5})(\D.*|)")
_MAX_LISTED = 8
_NOT_UTF8 = "convert the file or set data.invalid_utf8=replace"


def _builder_of(path: Path) -> str | None:
    """Return the datasets builder for a file, which may be compressed; None if there is none."""
    if path.suffix in _COMPRESSED:
        builder = _BUILDERS.get(Path(path.stem).suffix)
        return None if builder == "parquet" else builder
    return _BUILDERS.get(path.suffix)


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
    try:
        return _find_files(Path(str(settings.path)).expanduser())
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.path: cannot read {settings.path} ({error})") from error


def _find_files(root: Path) -> FoundFiles:
    known = f"{', '.join(_BUILDERS)}, text and JSON also as {', '.join(_COMPRESSED)}"
    if root.is_file():
        builder = _builder_of(root)
        if builder is None:
            raise DataError(f"data.path: {root} is of unknown type; known are {known}")
        return FoundFiles([LocalFile(root.name, root, builder, TRAIN)], [])
    if not root.is_dir():
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
            builder = _builder_of(path)
            if hidden or builder is None or not path.is_file():
                unused.append(relative)
            else:
                used.append(LocalFile(relative, path, builder, split_of_name(relative)))
    if not used:
        raise DataError(
            f"data.path: no file to read in {root}; known types are {known}"
            + (f"; found {_shortened(unused)}" if unused else "")
        )
    return FoundFiles(sorted(used), sorted(unused))


def _shortened(names: list[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _open(path: Path) -> Any:
    """Open a file, compressed or not, as bytes."""
    import fsspec

    return fsspec.open(str(path), "rb", compression="infer")


def _locate_json_error(path: Path, columns: list[str], allow_numbers: bool) -> str | None:
    """Find the first line that is no JSON object with a text; the builder names none or a block."""
    with _open(path) as file:
        if ".json" in path.suffixes[-2:] and file.read(1) in (b"[", b"{"):
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
                row = json.loads(line) if line.strip() else dict.fromkeys(columns, "")
                if not isinstance(row, dict):
                    return f"line {number} is no JSON object"
                for column in columns:
                    problem = bad_text(row[column], allow_numbers=allow_numbers)
                    if problem:
                        return f"line {number}: {column!r} {problem}"
                    str(row[column]).encode()
            except json.JSONDecodeError as error:
                return f"line {number}: {error.msg}"
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8; {_NOT_UTF8}"
            except UnicodeEncodeError:
                return f"line {number}: {column!r} holds half of a surrogate pair"
            except KeyError:
                return f"line {number} has no {column!r}"
    return None


def _locate_text_error(path: Path) -> str | None:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8; {_NOT_UTF8}"
    return None


def _explain(file: LocalFile, settings: DataSettings, columns: list[str], error: Exception) -> str:
    found = None
    # Looking for the place may fail as reading did, in a damaged archive.
    with contextlib.suppress(OSError, EOFError, ValueError, LookupError):
        if file.builder == "json":
            found = _locate_json_error(file.path, columns, settings.text_template is not None)
        elif file.builder == "text":
            found = _locate_text_error(file.path)
    return (
        f"{file.path}: {found or f'cannot be read as {file.builder}: {error.__cause__ or error}'}"
    )


def _rows(file: LocalFile, settings: DataSettings) -> Iterator[Document]:
    import datasets

    if file.builder != "text" and file.path.stat().st_size == 0:
        raise DataError(f"{file.path} is empty; restore or remove it")
    texts = RowTexts(settings, str(file.path), "text" if file.builder == "text" else None)
    options: dict[str, Any] = {}
    if file.builder == "text":
        by_line = settings.document_start is not None
        options = {"keep_linebreaks": True} if by_line else {"sample_by": "document"}
    if file.builder == "parquet":
        # Else whole row groups with all columns are in memory.
        options = {"batch_size": ROWS_AT_ONCE, "columns": _parquet_columns(file, texts)}
    elif settings.invalid_utf8 == "replace":
        options["encoding_errors"] = "replace"
    try:
        # Streaming copies nothing, but the builder insists on a folder for its lock.
        with _temporary_folder() as cache:
            rows = datasets.load_dataset(
                file.builder,
                # A data file is a pattern to datasets: an unescaped '[' would match no file.
                data_files={TRAIN: [glob.escape(str(file.path.absolute()))]},
                split=TRAIN,
                streaming=True,
                cache_dir=cache,
                **options,
            )
            for batch in rows.iter(batch_size=ROWS_AT_ONCE):
                for text, where in texts.of_batch(batch):
                    yield Document(text, where)
    except DataError:
        raise
    except Exception as error:
        raise DataError(_explain(file, settings, texts.columns, error)) from error
    if texts.num_rows == 0 and file.builder != "text":
        raise DataError(f"{file.path} holds no rows; restore or remove it")


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            f"no folder for temporary files can be made ({error}); free space, or set TMPDIR to a "
            "folder that can be written to"
        ) from error


def _parquet_columns(file: LocalFile, texts: RowTexts) -> list[str] | None:
    """Return the columns to read; None where one is missing, which reading will tell."""
    import pyarrow.parquet

    with contextlib.suppress(Exception):
        there = pyarrow.parquet.read_schema(file.path).names
        return texts.columns if set(texts.columns) <= set(there) else None
    return None


def _documents(file: LocalFile, settings: DataSettings) -> Iterator[Document]:
    return join_rows(_rows(file, settings), settings.document_start)


def _text_bytes(file: LocalFile, settings: DataSettings) -> int:
    """Estimate the text in a file from its size, for parquet from its own account."""
    size = file.path.stat().st_size
    if file.builder != "parquet":
        return size * (_COMPRESSION_RATIO if file.path.suffix in _COMPRESSED else 1)
    import pyarrow.parquet

    columns = RowTexts(settings, str(file.path)).columns
    # A damaged file is reported when it is read.
    with contextlib.suppress(Exception):
        metadata = pyarrow.parquet.read_metadata(file.path)
        return sum(
            group.column(index).total_uncompressed_size
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for index in range(group.num_columns)
            if group.column(index).path_in_schema in columns
        )
    return size


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
    used = [(file, name) for name in chosen for file in by_split[name]]
    # Before anything is read, so that a change in the meantime is seen.
    states = [_state(file) for file, _ in used]
    notes = []
    if unused:
        notes.append(f"not used in {settings.path}: {_shortened(sorted(unused))}")
    if len(files) > 1:
        counts = ", ".join(f"{name} {len(some)}" for name, some in by_split.items())
        notes.append(f"files per split in {settings.path}: {counts}")
    missing = _missing_of_series([file.relative for file in files] + unused)
    if missing:
        notes.append(
            f"not there in {settings.path}, by the numbers of the others: {_shortened(missing)}"
        )

    def account(documents: Sequence[int]) -> dict[str, Any]:
        entries = []
        for (file, name), state, number in zip(used, states, documents, strict=True):
            entry = {"file": file.relative, "split": name, "bytes": state[0], "documents": number}
            # Where a limit ends the reading early, most of a file may be no part of this.
            is_read = number and not (name == TRAIN and settings.max_train_tokens)
            entries.append(entry | ({"sha256": _hash(file, state)} if is_read else {}))
        return {"files": entries}

    return Corpus(
        # A part for each file: formats may differ, an error names its file, and what is done is
        # not read again.
        parts=[Part(chosen[name], partial(_documents, file, settings)) for file, name in used],
        validation_fraction=settings.validation_fraction,
        description={
            "source": "local",
            "path": settings.path,
            "unused_files": sorted(unused),
        },
        account=account,
        notes=notes,
        text_bytes=sum(_text_bytes(file, settings) for file, _ in used),
        text_bytes_are_known=all(
            file.builder != "json" and file.path.suffix not in _COMPRESSED for file, _ in used
        ),
    )


def _missing_of_series(names: list[str]) -> list[str]:
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


def _state(file: LocalFile) -> tuple[int, int]:
    try:
        status = file.path.stat()
    except OSError as error:
        raise DataError(f"{file.path} cannot be read ({error.strerror})") from error
    return status.st_size, status.st_mtime_ns


def _hash(file: LocalFile, state: tuple[int, int]) -> str:
    """Return the sha256 of a file that was read.

    Raises:
        DataError: If it is no longer in that state.
    """
    try:
        # A link may be what was read: the Hub's cache is made of them.
        sha256 = sha256_of_file(file.path.resolve())
    except OSError as error:
        raise DataError(
            f"{file.path} cannot be read again ({error.strerror}); prepare again"
        ) from error
    if _state(file) != state:
        raise DataError(f"{file.path} was changed while it was read; prepare again")
    return sha256
