"""Datasets of the Hugging Face Hub, at a recorded commit."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.hub import check_reachable, is_offline, resolve_dataset
from data.settings import DataSettings
from data.sources import Corpus, Document, Part, choose_splits, join_rows


def _rows(rows: Any, name: str, settings: DataSettings) -> Iterator[Document]:
    column = settings.text_column
    number = 0
    try:
        for batch in rows.iter(batch_size=1000):
            if column not in batch:
                raise DataError(
                    f"data.text_column ({column!r}) is no column of {settings.path}; "
                    f"its columns are {', '.join(batch)}"
                )
            for value in batch[column]:
                number += 1
                where = f"{settings.path} split {name} row {number}"
                if not isinstance(value, str):
                    raise DataError(f"{where}: {column!r} is {type(value).__name__}, not a string")
                yield Document(value, where)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{settings.path}: reading split {name} failed after {number} rows "
            f"({type(error).__name__}: {error})"
        ) from error


def _documents(rows: Any, name: str, settings: DataSettings) -> Iterator[Document]:
    return join_rows(_rows(rows, name, settings), settings.document_start)


def open_hub(settings: DataSettings, commit: str | None = None) -> Corpus:
    """Open a Hub dataset after a check that takes seconds, not minutes, without a network.

    Raises:
        DataError: If the Hub cannot be reached, or has no such dataset, revision, configuration
            or split; offline, if the cache does not have it.
    """
    path = str(settings.path)
    if Path(path).exists():
        raise DataError(
            f"data.path ({path!r}) is on this machine, and datasets would read it in place of the "
            f"Hub's: use data=local data.path={path} or another working directory"
        )
    alternative = "use local files with data=local data.path=..."
    check_reachable(f"dataset {path!r}", alternative)
    commit = None if is_offline() else resolve_dataset(path, commit or settings.revision).sha

    import datasets

    try:
        splits = datasets.load_dataset(
            path,
            settings.config_name,
            revision=commit or settings.revision,
            streaming=settings.streaming,
        )
    except Exception as error:
        where = "in the local cache (HF_HUB_OFFLINE=1)" if is_offline() else f"at {commit}"
        raise DataError(
            f"data.path ({path!r}), data.config_name ({settings.config_name!r}): cannot load the "
            f"dataset {where}: {error}; {alternative}"
        ) from error
    return Corpus(
        parts=[
            Part(split, partial(_documents, splits[name], name, settings))
            for name, split in choose_splits(settings, splits).items()
        ],
        validation_fraction=settings.validation_fraction,
        description={
            "source": "hub",
            "path": path,
            "config": settings.config_name,
            "revision": settings.revision,
            "commit": commit,
            "streaming": settings.streaming,
        },
    )
