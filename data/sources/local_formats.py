"""Reading text, JSON, CSV and parquet files as they are, in bounded memory."""

import codecs
import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.sources.compressed import compression_of, open_bytes
from data.sources.corpus import Document
from data.sources.file_kinds import HEAD_BYTES, foreign_kind, is_markup, pointer_at, undecodable
from data.sources.local_files import LocalFile
from data.sources.rows import ROWS_AT_ONCE, RowTexts, Written, rows_of
from settings.data import DataSettings

_CHUNK_BYTES = 2**20
_MARK = "\ufeff"
_NARROW = {"float": "float32", "halffloat": "float16"}
# Matches everywhere: as much white space as there is.
_SPACES: Any = re.compile(r"\s*")


def read_rows(file: LocalFile, settings: DataSettings) -> Iterator[Document]:
    """Yield the rows of a file: of text the whole of it, or its lines under `document_start`.

    No byte of the text is added, lost or translated.

    Raises:
        DataError: If it is not what its name says, or cannot be decoded; with the line or row.
    """
    texts = RowTexts(settings, str(file.path), ", or move the file out of data.path")
    try:
        _refuse_foreign(file, settings)
        if file.format == "text":
            yield from _text(file.path, settings)
            return
        if file.path.stat().st_size == 0:
            raise DataError(f"{file.path} is empty; restore or remove it")
        rows = {"json": _json, "csv": _csv, "parquet": _parquet}[file.format]
        for row in rows(file.path, settings, texts.columns):
            yield texts.of_row(row)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path}: {_locate(file.path, settings, error)}") from error
    except RecursionError as error:
        raise DataError(f"{file.path}: row {texts.num_rows + 1} is nested too deeply") from error
    # A damaged archive raises anything.
    except Exception as error:
        raise DataError(f"{file.path}: {_explain(file, error)}") from error
    if texts.num_rows == 0:
        raise DataError(f"{file.path} holds no rows; restore or remove it")


def _refuse_foreign(file: LocalFile, settings: DataSettings) -> None:
    # A pointer bears the name of what it points at.
    if compression_of(file.path) and (kind := pointer_at(file.path)):
        raise DataError(f"{file.path} {kind}")
    with open_bytes(file.path) as opened:
        head = opened.read(HEAD_BYTES)
    # Parquet is what parquet's signature says, and everything else is for its reader to refuse.
    if file.format == "parquet" and head.startswith(b"PAR1"):
        return
    if kind := foreign_kind(head, settings.encoding):
        raise DataError(f"{file.path} {kind}")


def _explain(file: LocalFile, error: Exception) -> str:
    compression = compression_of(file.path)
    if compression and not isinstance(error, json.JSONDecodeError | csv.Error):
        return (
            f"cannot be read as {compression[1:]} data ({error}); restore it, or, if it is not "
            f"compressed, remove the ending {compression} from its name"
        )
    return f"cannot be read as {file.format}: {error}"


def _errors(settings: DataSettings) -> str:
    return "replace" if settings.invalid_utf8 == "replace" else "strict"


@contextlib.contextmanager
def _decoded(path: Path, settings: DataSettings, newline: str) -> Iterator[io.TextIOWrapper]:
    """Open a file as text whose lines keep their ends; `newline` as io.TextIOWrapper's."""
    with (
        open_bytes(path) as opened,
        io.TextIOWrapper(
            opened, encoding=settings.encoding, errors=_errors(settings), newline=newline
        ) as text,
    ):
        yield text


def _text(path: Path, settings: DataSettings) -> Iterator[Document]:
    if settings.document_start is None:
        with open_bytes(path) as opened:
            text = opened.read().decode(settings.encoding, _errors(settings))
        yield Document(text, str(path))
        return
    with _decoded(path, settings, "") as lines:
        for number, line in enumerate(lines, start=1):
            yield Document(line, f"{path} line {number}")


def _json(path: Path, settings: DataSettings, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines, of an array, or one after another in any layout."""
    decoder = json.JSONDecoder(
        # A tab in a text is against the standard, and meant.
        strict=False,
        parse_int=Written,
        parse_float=Written,
        parse_constant=Written,
    )
    with _decoded(path, settings, "\n") as lines:
        is_first = True
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(_MARK) if number == 1 else line
            if not text.strip():
                continue
            if is_first and text.lstrip()[0] == "[":
                yield from _json_objects(text + lines.read(), number, path, decoder)
                return
            try:
                values = _values(text, decoder)
            except json.JSONDecodeError as error:
                # An object that continues in the next line.
                if is_first and error.pos >= len(text.rstrip()):
                    yield from _json_objects(text + lines.read(), number, path, decoder)
                    return
                raise _bad_json(path, number, error, text) from error
            is_first = False
            for value in values:
                if not isinstance(value, dict):
                    raise DataError(f"{path}: line {number} is no JSON object")
                if "\\u" in text:
                    _refuse_surrogates(value, columns, f"{path}: line {number}")
                yield value


def _json_objects(
    text: str, first_line: int, path: Path, decoder: json.JSONDecoder
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a text that is no JSON lines: all of it is in memory."""
    try:
        values = _values(text, decoder)
    except json.JSONDecodeError as error:
        raise _bad_json(path, first_line + error.lineno - 1, error, text) from error
    if len(values) == 1 and isinstance(values[0], list):
        # An array of texts is one column.
        values = [{"text": value} if isinstance(value, str) else value for value in values[0]]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}: row {number} is no JSON object")
        yield value


def _values(text: str, decoder: json.JSONDecoder) -> list[Any]:
    """Parse the JSON values that a text holds, one after another."""
    values, end = [], _SPACES.match(text, 0).end()
    while end < len(text):
        value, end = decoder.raw_decode(text, end)
        values.append(value)
        end = _SPACES.match(text, end).end()
    return values


def _bad_json(path: Path, number: int, error: json.JSONDecodeError, text: str) -> DataError:
    page = "; it is a page of HTML or XML" if is_markup(text[:200].encode()) else ""
    return DataError(f"{path}: line {number}: {error.msg}{page}")


def _refuse_surrogates(row: dict[str, Any], columns: list[str], where: str) -> None:
    for column in columns:
        value = row.get(column)
        try:
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: {column!r} holds half of a surrogate pair") from error


def _unmarked(lines: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines without a byte order mark, before which quotes would be no quotes."""
    yield lines.readline().removeprefix(_MARK)
    yield from lines


def _csv(path: Path, settings: DataSettings, columns: list[str]) -> Iterator[dict[str, Any]]:
    # A text may be as long as a book; the library's bound is 128 kB.
    csv.field_size_limit(sys.maxsize)
    name = path.name.lower().removesuffix(compression_of(path) or "")
    with _decoded(path, settings, "") as lines:
        separator = "\t" if name.endswith(".tsv") else ","
        rows = csv.reader(_unmarked(lines), delimiter=separator, strict=True)
        header: list[str] | None = None
        first_line = 1
        try:
            for row in rows:
                if row and header is None:
                    header = row
                    _refuse_twins(path, header, columns)
                elif row and header is not None:
                    if len(row) != len(header):
                        raise DataError(
                            f"{path}: line {rows.line_num} has {len(row)} fields where the header "
                            f"has {len(header)}; put a text that holds the separator in quotes"
                        )
                    yield dict(zip(header, row, strict=True))
                first_line = rows.line_num + 1
        except csv.Error as error:
            what = str(error).replace("\t", "\\t")
            raise DataError(
                f"{path}: the row that begins in line {first_line}: {what}; put a text that holds "
                "quotes in quotes, and double those in it"
            ) from error


def _refuse_twins(path: Path, there: list[str], columns: list[str]) -> None:
    for column in columns:
        if there.count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r}")


def _parquet(path: Path, settings: DataSettings, columns: list[str]) -> Iterator[dict[str, Any]]:
    del settings
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        _refuse_twins(path, there, columns)
        # Without them, a row has what its message names.
        asked = columns if set(columns) <= set(there) else None
        if asked is None:
            yield dict.fromkeys(there)
            return
        # Else whole row groups with all columns are in memory.
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=asked, use_threads=False):
            types = {field.name: _NARROW.get(str(field.type)) for field in batch.schema}
            yield from rows_of(batch.to_pydict(), types)


def _locate(path: Path, settings: DataSettings, error: UnicodeDecodeError) -> str:
    """Name the first line that cannot be decoded, and say what to do."""
    encoding = settings.encoding
    # Parquet's texts are UTF-8 by its format.
    if path.suffix.lower() == ".parquet":
        return f"a text is not UTF-8 ({error.reason}); correct the file"
    decoder, number, sample = codecs.getincrementaldecoder(encoding)(), 1, b""
    with open_bytes(path) as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            sample = sample or chunk
            try:
                number += decoder.decode(chunk).count("\n")
            except UnicodeDecodeError as found:
                good = found.object[: found.start]
                number += good.decode(encoding, "replace").count("\n")
                break
    name = "UTF-8" if encoding == "utf-8" else f"{encoding} (data.encoding)"
    return f"line {number} is not {name}{undecodable(sample, encoding)}"
