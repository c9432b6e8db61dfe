"""The corpus that the settings name."""

from typing import Any

from data.sources.corpus import Corpus
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
    if settings.source == "local":
        from data.sources.local import open_local

        corpus = open_local(settings)
    elif settings.source == "hub":
        from data.sources.hub_dataset import open_hub

        corpus = open_hub(settings, commit)
    else:
        from data.sources.python_library import open_python

        corpus = open_python(settings)
    corpus.name = name
    return corpus


def source_identity(settings: DataSettings) -> Any:
    """Return what determines, with the settings, the documents; quick, reads no text.

    Raises:
        DataError: If a local path does not exist or holds no usable file.
    """
    if settings.source == "local":
        from data.sources.local_files import find_files

        files = [
            [file.relative, file.path.stat().st_size, file.path.stat().st_mtime_ns]
            for file in find_files(settings).used
        ]
        return {"files": files, "reader": _LOCAL_READER}
    if settings.source == "hub":
        return None
    from data.sources.python_library import python_identity

    return python_identity(settings.source)
