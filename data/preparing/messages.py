"""What a preparation says of its text: what is left out, what is lost, how it was split."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.shards.manifest import share_of
from data.sources.corpus import Corpus
from data.splits import TEST, TRAIN, VALIDATION

# Fewer documents give no interval.
MIN_DOCUMENTS = 10

Splits = dict[str, dict[str, Any]]


def notes_on(
    corpora: Sequence[Corpus], splits: Splits, num_empty: int, tokenizer: str
) -> Iterator[str]:
    """Yield lines for the user.

    Args:
        corpora: What was read.
        splits: What became of it, by label, as the manifest has it.
        num_empty: Rows and files without text.
        tokenizer: Its name.
    """
    for corpus in corpora:
        yield from _on_split(corpus, splits)
    # Every installation of Python has such files; its packages, too.
    if num_empty and any(corpus.settings.source in ("local", "hub") for corpus in corpora):
        rows = "empty row or file is" if num_empty == 1 else "empty rows or files are"
        yield f"{num_empty:,} {rows} left out: no text in them"
    for split in (TRAIN, VALIDATION, TEST):
        counts = splits.get(split, {})
        if counts.get("lost_bytes"):
            yield (
                f"warning: tokenizer {tokenizer} does not give back "
                f"{share_of(counts['lost_bytes'], counts['utf8_bytes'])} of the bytes of {split}, "
                "which therefore cost nothing: no bits per byte are compared with those of other "
                "tokenizers"
            )


def _on_split(corpus: Corpus, splits: Splits) -> Iterator[str]:
    """Say where a validation split that was taken by hash is not what was asked for."""
    if not corpus.is_split_by_hash:
        return
    train, validation = (splits[corpus.label(split)] for split in (TRAIN, VALIDATION))
    asked = corpus.settings.validation_fraction
    share = validation["utf8_bytes"] / (train["utf8_bytes"] + validation["utf8_bytes"])
    number = train["documents"] + validation["documents"]
    # With a limit, training text was left out.
    is_limited = corpus.settings.max_train_tokens is not None
    is_far = not is_limited and not asked / 2 <= share <= asked * 2
    if not is_far and validation["documents"] >= MIN_DOCUMENTS:
        return
    # Of many documents, none much longer than the others, a larger share is enough of them.
    enough = 2 * MIN_DOCUMENTS / number
    can_be_raised = enough <= 0.2 and share < 3 * validation["documents"] / number
    yield (
        f"warning: validation is {validation['documents']} of {number} documents and {share:.1%} "
        f"of the bytes, where {corpus.key}.validation_fraction asks for {asked:.1%}; an interval "
        f"needs at least {MIN_DOCUMENTS} documents: "
        + (f"raise it to {enough:.2g}" if can_be_raised else _more_documents(corpus))
    )


def _more_documents(corpus: Corpus) -> str:
    key, start = f"{corpus.key}.document_start", corpus.settings.document_start
    more = (
        f"split long files into documents with {key}"
        if start is None
        else f"let {key} ({start!r}) match more lines"
    )
    return f"{more}, or name files to hold out (such as train.txt and validation.txt in one folder)"


def too_little(split: str, corpus: Corpus, num_read: int) -> str:
    """Say why a split has no text, and what to do.

    Args:
        split: Its name.
        corpus: What it should have been taken from.
        num_read: Documents with text in all corpora.
    """
    settings = corpus.settings
    if num_read == 0 or not corpus.is_split_by_hash:
        what = settings.path or settings.name
        return f"{corpus.key}.source {settings.source} ({what}): no text for split {split}"
    # Of fewer documents a larger fraction holds out one or two, which may be most of the text.
    is_few = num_read < 1 / settings.validation_fraction or num_read < MIN_DOCUMENTS
    remedy = "" if is_few else "lower it, " if split == TRAIN else "raise it, "
    if split != TRAIN and settings.max_train_tokens is not None:
        # At which reading ends.
        remedy += f"raise {corpus.key}.max_train_tokens ({settings.max_train_tokens}), "
    documents = "1 document" if num_read == 1 else f"{num_read} documents"
    return (
        f"{corpus.key}.validation_fraction ({settings.validation_fraction}) of {documents} left "
        f"none for {'training' if split == TRAIN else split}: {remedy}{_more_documents(corpus)}"
    )


def left_over(folder: Path, pattern: str) -> list[Path]:
    """List unfinished preparations that are newer than every finished one: others were named."""
    # Another process may finish one or remove it meanwhile.
    changed = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.is_dir():
                changed[path] = path.stat().st_mtime_ns
    finished = [time for path, time in changed.items() if path.suffix != ".partial"]
    newest = max(finished, default=0)
    return sorted(p for p, time in changed.items() if p.suffix == ".partial" and time > newest)
