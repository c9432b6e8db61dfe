"""Files on this machine: parquet, JSON, CSV and text, every one used or named."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from data.errors import DataError
from data.sources.compressed import compression_of
from data.sources.corpus import Corpus, Document, Part, join_rows
from data.sources.local_files import (
    LocalFile,
    find_files,
    missing_of_series,
    shortened,
)
from data.sources.local_formats import read_rows
from data.sources.rows import RowTexts
from data.splits import TRAIN, choose_splits
from files.regular_file import sha256_of_file
from settings.data import DataSettings, is_utf8

# Text and JSON become about a quarter; only an estimate hangs on it.
_COMPRESSION_RATIO = 4


def _documents(file: LocalFile, settings: DataSettings) -> Iterator[Document]:
    # A text's lines have their ends; rows have none.
    line_end = "" if file.format == "text" else "\n"
    return join_rows(read_rows(file, settings), settings.document_start, line_end)


def _text_bytes(file: LocalFile, settings: DataSettings) -> int:
    """Estimate the text in a file from its size, for parquet from its own account."""
    size = file.path.stat().st_size
    if file.format != "parquet":
        return size * (_COMPRESSION_RATIO if compression_of(file.path) else 1)
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
    if settings.train_split == TRAIN and TRAIN not in by_split:
        raise DataError(_nothing_to_train_on(settings, by_split, unused))
    chosen = choose_splits(settings, by_split)
    for name in by_split.keys() - chosen.keys():
        unused += [file.relative for file in by_split[name]]
    used = [(file, name) for name in chosen for file in by_split[name]]
    if not is_utf8(settings.encoding) and all(file.format == "parquet" for file, _ in used):
        raise DataError(
            f"data.encoding ({settings.encoding!r}) applies to text, JSON and CSV; the files of "
            f"{settings.path} are parquet, whose text is always UTF-8: leave it out"
        )
    # Before anything is read, so that a change in the meantime is seen.
    states = [_state(file) for file, _ in used]
    notes = []
    if unused:
        notes.append(f"not used in {settings.path}: {shortened(sorted(unused))}")
    if len(files) > 1:
        counts = ", ".join(f"{name} {len(some)}" for name, some in by_split.items())
        notes.append(f"files per split in {settings.path}: {counts}")
    empty = [file.relative for (file, _), state in zip(used, states, strict=True) if not state[0]]
    if empty:
        plural = "s" if len(empty) > 1 else ""
        notes.append(f"{len(empty)} empty file{plural} in {settings.path}: {shortened(empty)}")
    missing = missing_of_series([file.relative for file in files] + unused)
    if missing:
        notes.append(
            f"not there in {settings.path}, by the numbers of the others: {shortened(missing)}"
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
        settings=settings,
        # A part for each file: formats may differ, an error names its file, and what is done is
        # not read again.
        parts=[Part(chosen[name], partial(_documents, file, settings)) for file, name in used],
        description={
            "source": "local",
            "path": settings.path,
            "unused_files": sorted(unused),
        },
        account=account,
        notes=notes,
        text_bytes=sum(_text_bytes(file, settings) for file, _ in used),
        text_bytes_are_known=all(
            file.format in ("text", "parquet") and not compression_of(file.path) for file, _ in used
        )
        and is_utf8(settings.encoding),
    )


def _nothing_to_train_on(
    settings: DataSettings, by_split: dict[str, list[LocalFile]], unused: list[str]
) -> str:
    named = "; ".join(
        f"of split {name}: {shortened([file.relative for file in some])}"
        for name, some in by_split.items()
    )
    others = f"; not used: {shortened(unused)}" if unused else ""
    return (
        f"data.path: {settings.path} holds no training text; by their names its files are {named}"
        f"{others}; rename one (such as train.txt), or set data.train_split={next(iter(by_split))}"
    )


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
