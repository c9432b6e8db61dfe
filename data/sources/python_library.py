"""The source files of the running Python: real text on every machine, without a download."""

import contextlib
import hashlib
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError
from data.sources.corpus import Corpus, Document, Part
from data.splits import TRAIN, VALIDATION, split_by_hash
from settings.data import DataSettings

_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test"}
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
# Tables and texts that a generator wrote; one of them alone is 6 % of the library's bytes.
_GENERATED_FOLDERS = {"encodings", "pydoc_data"}


class PythonFile(NamedTuple):
    """A source file; `relative` does not depend on where Python is installed."""

    relative: str
    path: str
    num_bytes: int


def python_files(source: str) -> list[PythonFile]:
    """List the files of python_stdlib or python_packages, sorted by relative path.

    Test suites are left out, which are large, repetitive and absent from many installations, and
    so is what a generator wrote.
    """
    paths = sysconfig.get_paths()
    # Keyed by the real folder: purelib and platlib are often one.
    roots = {
        Path(paths["stdlib"]).resolve(): (
            "",
            _SKIPPED_FOLDERS | _PACKAGE_FOLDERS | _GENERATED_FOLDERS,
        )
    }
    if source == "python_packages":
        for key in ("purelib", "platlib"):
            roots[Path(paths[key]).resolve()] = ("packages/", _SKIPPED_FOLDERS)
    found = []
    for root, (prefix, skipped) in roots.items():
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in skipped]
            for name in names:
                path = Path(folder, name)
                # No dangling links.
                if name.endswith(".py") and path.is_file():
                    relative = prefix + path.relative_to(root).as_posix()
                    found.append(PythonFile(relative, str(path), path.stat().st_size))
    return sorted(found)


def python_identity(source: str) -> list[Any]:
    """Return the Python version and every file's name and size."""
    return [platform.python_version(), [[file[0], file[2]] for file in python_files(source)]]


def _read_text(path: str) -> str:
    """Decode a file as Python does (PEP 263), with U+FFFD for what cannot be decoded."""
    data = Path(path).read_bytes()
    encoding = "utf-8"
    # A file need not be valid Python: a declaration of an unknown encoding is none.
    with contextlib.suppress(SyntaxError):
        declared, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        encoding = encoding if declared == "utf-8-sig" else declared
    return data.decode(encoding, "replace")


def _documents(files: list[PythonFile]) -> Iterator[Document]:
    try:
        for file in files:
            yield Document(_read_text(file.path), file.relative)
    except OSError as error:
        raise DataError(f"a file of Python's cannot be read ({error}); make it readable") from error


def open_python(settings: DataSettings) -> Corpus:
    """Open python_stdlib or python_packages; a file's split is the hash of its relative path."""
    files = python_files(settings.source)
    by_split: dict[str, list[PythonFile]] = {TRAIN: [], VALIDATION: []}
    for file in files:
        split = split_by_hash(file.relative.encode(), settings.validation_fraction)
        by_split[split].append(file)
    listing = "".join(f"{file.relative}\t{file.num_bytes}\n" for file in files)
    return Corpus(
        settings=settings,
        parts=[Part(split, partial(_documents, some)) for split, some in by_split.items()],
        description={
            "source": settings.source,
            "python": platform.python_version(),
            "num_files": len(files),
            "bytes": sum(file.num_bytes for file in files),
            "file_list_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        },
        text_bytes=sum(file.num_bytes for file in files),
        text_bytes_are_known=True,
    )
