"""Datasets of the Hugging Face Hub, at a recorded commit."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.hub.connection import cached_commit, check_reachable, explain, is_offline, resolve
from data.hub.watch import watched
from data.sources.corpus import Corpus, Document, Part, join_rows
from data.sources.rows import ROWS_AT_ONCE, RowTexts, rows_of
from data.splits import choose_splits
from settings.data import DataSettings

_ALTERNATIVE = "use local files with data=local data.path=..."


def _batches(
    rows: Any, columns: list[str], settings: DataSettings
) -> Iterator[dict[str, list[Any]]]:
    # Images and the like would be decoded.
    if rows.column_names is not None and set(columns) <= set(rows.column_names):
        rows = rows.select_columns(columns)
    batches = rows.iter(batch_size=ROWS_AT_ONCE)
    if not settings.streaming:
        yield from batches
        return
    what = f"dataset {settings.path!r}"
    while (batch := watched(what, partial(next, batches, None), _ALTERNATIVE)) is not None:
        yield batch


def _rows(rows: Any, name: str, settings: DataSettings) -> Iterator[Document]:
    texts = RowTexts(settings, f"{settings.path} {name}")
    kinds = {column: getattr(kind, "dtype", None) for column, kind in (rows.features or {}).items()}
    try:
        for batch in _batches(rows, texts.columns, settings):
            yield from map(texts.of_row, rows_of(batch, kinds))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{settings.path}: reading {name} failed after {texts.num_rows} rows: {explain(error)}"
        ) from error


def _documents(rows: Any, name: str, settings: DataSettings) -> Iterator[Document]:
    return join_rows(_rows(rows, name, settings), settings.document_start)


def _one_file(rows: Any, index: int, name: str, settings: DataSettings) -> Iterator[Document]:
    # Contiguous: the shards one after the other are the rows in their order.
    shard = rows.shard(num_shards=rows.num_shards, index=index, contiguous=True)
    return _documents(shard, f"{name} file {index + 1} of {rows.num_shards}", settings)


def _parts(rows: Any, name: str, split: str | None, settings: DataSettings) -> list[Part]:
    name = f"split {name}"
    # A document made of several rows may continue in the next file.
    if not settings.streaming or settings.document_start is not None or rows.num_shards < 2:
        return [Part(split, partial(_documents, rows, name, settings))]
    return [
        Part(split, partial(_one_file, rows, index, name, settings))
        for index in range(rows.num_shards)
    ]


def _text_bytes(rows: Any, name: str, settings: DataSettings) -> int | None:
    """Estimate the text of a split; None if the Hub does not say."""
    if settings.streaming:
        # Of all columns, so at most too much.
        described = (rows.info.splits or {}).get(name)
        return None if described is None else described.num_bytes
    columns = RowTexts(settings, name).columns
    return sum(rows.data.column(name).nbytes for name in columns if name in rows.column_names)


def _builder(settings: DataSettings, commit: str | None) -> Any:
    """Return datasets' builder at this commit; offline, of the newest copy in the cache."""
    import datasets

    path = str(settings.path)
    return datasets.load_dataset_builder(path, settings.config_name, revision=commit)


def _read(builder: Any, streaming: bool) -> Any:
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _require_cached(builder: Any, path: str, revision: str) -> Any:
    """Return the builder of the cached copy that `revision` names.

    Raises:
        DataError: If the cache has another commit, or does not say which commit that is.
    """
    if re.fullmatch("[0-9a-f]{7,40}", revision):
        commit: str | None = revision
    else:
        commit = cached_commit("dataset", path, revision)
    if commit is not None and builder.hash.startswith(commit):
        return builder
    if commit is not None:
        # datasets offers the newest copy only; an older one may be next to it.
        newest = Path(builder.cache_dir)
        for copy in newest.parent.glob(f"{commit}*/"):
            # So may one whose download broke off: COMMIT.incomplete.
            if not re.fullmatch("[0-9a-f]{40}", copy.name):
                continue
            return type(builder)(
                dataset_name=builder.dataset_name,
                repo_id=path,
                config_name=builder.config.name,
                version=newest.parent.name,
                hash=copy.name,
            )
    what = f"is commit {commit}" if commit else "may be any commit"
    raise DataError(
        f"data.revision ({revision!r}) of {path} {what}, and the cache has commit {builder.hash} "
        f"(HF_HUB_OFFLINE=1); set data.revision={builder.hash} to read that, or unset "
        "HF_HUB_OFFLINE"
    )


def open_hub(settings: DataSettings, commit: str | None = None) -> Corpus:
    """Open a Hub dataset after a check that takes seconds, not minutes, without a network.

    Args:
        settings: What to read.
        commit: What an interrupted preparation read; takes precedence over settings.revision.

    Raises:
        DataError: If the Hub cannot be reached, falls silent, or has no such dataset, revision,
            configuration or split; offline, if the cache does not have it.
    """
    path = str(settings.path)
    if Path(path).exists():
        raise DataError(
            f"data.path ({path!r}) is on this machine, and datasets would read it in place of the "
            f"Hub's: use data=local data.path={path} or another working directory"
        )
    what = f"dataset {path!r}"
    revision = commit or settings.revision
    check_reachable(what, _ALTERNATIVE)
    offline = is_offline()
    found = None if offline else resolve("dataset", path, revision, "data.path", _ALTERNATIVE)
    try:
        builder = watched(what, partial(_builder, settings, found), _ALTERNATIVE)
        if offline and revision is not None:
            builder = _require_cached(builder, path, revision)
        if not offline and builder.hash != found:
            raise DataError(
                f"data.path ({path!r}): commit {found} could not be read and datasets fell back to "
                f"commit {builder.hash} in its cache; try again later, set "
                f"data.revision={builder.hash}, or {_ALTERNATIVE}"
            )
        splits = watched(what, partial(_read, builder, settings.streaming), _ALTERNATIVE)
    except DataError:
        raise
    except Exception as error:
        where = "in the local cache (HF_HUB_OFFLINE=1)" if offline else f"at commit {found}"
        raise DataError(
            f"data.path ({path!r}), data.config_name ({settings.config_name!r}): cannot load the "
            f"dataset {where}: {explain(error)}, or {_ALTERNATIVE}"
        ) from error
    chosen = choose_splits(settings, splits)
    sizes = [_text_bytes(splits[name], name, settings) for name in chosen]
    known = builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    return Corpus(
        settings=settings,
        parts=[
            part
            for name, split in chosen.items()
            for part in _parts(splits[name], name, split, settings)
        ],
        text_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        text_bytes_are_known=not settings.streaming,
        description={
            "source": "hub",
            "path": path,
            "config": settings.config_name,
            "revision": settings.revision,
            "commit": known,
            "streaming": settings.streaming,
        },
        notes=[]
        if known
        else [f"{what}: the cache does not say which commit its copy is; none is recorded"],
    )
