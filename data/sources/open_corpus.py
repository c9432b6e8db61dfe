"""The corpus that the settings name."""

from typing import Any

from data.sources.corpus import Corpus
from data.sources.hub_dataset import open_hub
from data.sources.local import open_local
from data.sources.local_files import find_files
from data.sources.python_library import open_python, python_identity
from settings.data import DataSettings

# Counted up when the same files are read as other text.
_LOCAL_READER = 2


def open_corpus(settings: DataSettings, name: str = "", commit: str | None = None) -> Corpus:
    """Open the source that the settings name.

    Args:
        settings: Where the text comes from.
        name: Of the corpus among several that are mixed.
        commit: Of a Hub dataset, what an interrupted preparation read; in place of the revision.

    Raises:
        DataError: If it cannot be found, reached or understood.
    """
    if settings.source == "hub":
        corpus = open_hub(settings, commit)
    else:
        corpus = open_local(settings) if settings.source == "local" else open_python(settings)
    corpus.name = name
    return corpus


def source_identity(settings: DataSettings) -> Any:
    """Return what determines, with the settings, the documents; quick, reads no text.

    Raises:
        DataError: If a local path does not exist or holds no usable file.
    """
    if settings.source == "hub":
        return None
    if settings.source != "local":
        return python_identity(settings.source)
    files = [
        [file.relative, file.path.stat().st_size, file.path.stat().st_mtime_ns]
        for file in find_files(settings).used
    ]
    return {"files": files, "reader": _LOCAL_READER}
