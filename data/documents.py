"""The documents of a prepared split: how large they are, and what a reader calls them."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepared import PreparedData
from data.shards.stream import TokenStream
from data.sources.python_library import python_files
from data.splits import VALIDATION
from guards.printable import printable

_CHUNK_TOKENS = 2**20
# Characters shown of a text whose file is not known.
_BEGINNING = 40
# Of an opening: tokens read, words, and characters where words are long.
_TOKENS, _WORDS, _CHARACTERS = 64, 3, 24


def split_documents(
    stream: TokenStream, end_of_document_id: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the tokens of each document of a stream, without the one that ends it."""
    rest: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(stream), _CHUNK_TOKENS):
        chunk = stream.window(start, min(_CHUNK_TOKENS, len(stream) - start))
        begin = 0
        for end in np.flatnonzero(chunk == end_of_document_id).tolist():
            yield np.concatenate([*rest, chunk[begin:end]])
            rest, begin = [], end + 1
        rest.append(chunk[begin:])


def document_names(prepared: PreparedData, split: str, numbers: Iterable[int]) -> dict[int, str]:
    """Name documents of a prepared split.

    Prepared data do not hold names. A file is recognised by its content: a local one by the sha256
    that was recorded when it was read, one of Python's by looking at it where it still is.

    Args:
        prepared: The corpus.
        split: Which.
        numbers: Of the documents, from 0, in the order of the split.

    Returns:
        By number, the relative name of the file that the document is all of; otherwise its number
        counted from 1 and the first words.

    Raises:
        DataError: If tokens or tokenizer cannot be read.
    """
    wanted, tokenizer = {*numbers}, prepared.tokenizer()
    texts: dict[int, str] = {}
    if wanted:
        stream = prepared.stream(split)
        for number, tokens in enumerate(split_documents(stream, prepared.end_of_document_id)):
            if number in wanted:
                texts[number] = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
            if len(texts) == len(wanted):
                break
    names: dict[int, str] = {}
    for source in (prepared.source, *prepared.source.get("corpora", {}).values()):
        names |= _files(source, texts)
    return {n: names.get(n) or f"document {n + 1}: {_beginning(text)}" for n, text in texts.items()}


def document_bytes(prepared: PreparedData, split: str) -> list[int] | None:
    """Return the UTF-8 bytes of each document of a split, in order.

    None where its tokens do not give them back: some tokenizers lose a part of the text.

    Raises:
        DataError: If tokens or tokenizer cannot be read.
    """
    tokenizer = prepared.tokenizer()
    found = [
        len(tokenizer.decode(tokens.tolist(), skip_special_tokens=False).encode())
        for tokens in split_documents(prepared.stream(split), prepared.end_of_document_id)
    ]
    return found if sum(found) == prepared.splits[split].utf8_bytes else None


def _files(source: dict[str, Any], texts: dict[int, str]) -> dict[int, str]:
    """Return by number the file of a source that a text is all of, where there is one."""
    if source.get("source") in ("python_stdlib", "python_packages"):
        return {n: name for n, text in texts.items() for name in _python_files(source, text)}
    listed = source.get("files")
    by_hash = {
        str(file.get("sha256")): str(file.get("file"))
        for file in (listed if isinstance(listed, list) else [])
        if isinstance(file, dict)
    }
    hashes = {n: hashlib.sha256(text.encode()).hexdigest() for n, text in texts.items()}
    return {n: by_hash[found] for n, found in hashes.items() if found in by_hash}


def _python_files(source: dict[str, Any], text: str) -> Iterator[str]:
    """Yield the first file of Python's that holds a text, if one does."""
    data = text.encode()
    for file in python_files(source["source"]):
        if file.num_bytes == len(data):
            try:
                is_it = Path(file.path).read_bytes() == data
            except OSError:
                continue
            if is_it:
                yield file.relative
                return


def _beginning(text: str) -> str:
    words = " ".join(printable(text).split())
    return words if len(words) <= _BEGINNING else f"{words[:_BEGINNING].rstrip()}..."


def opening(prepared: PreparedData) -> str:
    """Return the first words of the validation split, at least one character.

    Raises:
        DataError: If the split is not what was written.
    """
    stream = prepared.stream(VALIDATION)
    ids = stream.window(0, min(_TOKENS, len(stream))).tolist()
    # A character of several bytes may be cut at the end.
    text = prepared.tokenizer().decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    words = re.match(rf"\s*(?:\S+\s+){{0,{_WORDS - 1}}}\S+", text)
    found = words.group(0).lstrip() if words else ""
    return found[:_CHARACTERS] if len(found) > 2 * _CHARACTERS else found or text or " "
