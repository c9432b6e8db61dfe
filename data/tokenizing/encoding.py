"""Text to token ids, on all cores, in the order in which it came."""

import functools
import hashlib
import os
import re
import signal
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.sources.corpus import Document
from data.tokenizing.round_trip import LostBytes, gives_back_all
from data.tokenizing.tokenizer import (
    CUT,
    Tokens,
    byte_level_parts,
    end_of_document_id,
    load_tokenizer,
    split_long,
    token_dtype,
    vocab_size_of,
)
from guards.parent import end_with_parent

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GPT-2's pattern (Radford et al. 2019) with its classes written out for ASCII; "\t-\r " is \s.
_ASCII_PRETOKEN = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+"
    r"|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
_MAX_REMEMBERED = 2**17
_MAX_REMEMBERED_LENGTH = 64

D = TypeVar("D", bound=Document)


class Encoded(NamedTuple):
    """A batch of n documents as tokens.

    Attributes:
        tokens: Of all documents, each followed by the end-of-document token.
        lengths: [n] int64 tokens per document, that one included.
        utf8_bytes: [n] int64.
        words: [n] int64, whitespace-separated.
        lines: [n] int64, a last one without a newline included.
        digests: [n] uint64 hashes of the texts.
        lost_bytes: [n] int64 UTF-8 bytes that the tokens do not give back.
    """

    tokens: Tokens
    lengths: npt.NDArray[np.int64]
    utf8_bytes: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    lost_bytes: npt.NDArray[np.int64]


class _Remembered(dict[str, bytes]):
    """Piece of text -> its ids as bytes, worked out by the tokenizer the first time."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype[Any]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = dtype

    def __missing__(self, piece: str) -> bytes:
        ids = np.array(
            self._tokenizer.encode(piece, add_special_tokens=False).ids, dtype=self._dtype
        ).tobytes()
        if len(piece) <= _MAX_REMEMBERED_LENGTH:
            if len(self) >= _MAX_REMEMBERED:
                self.clear()
            self[piece] = ids
        return ids


class TextEncoder:
    """The ids of `tokenizer.encode`, several times as fast where text repeats its words.

    A byte-level BPE first cuts the text by GPT-2's pattern and then encodes each piece by itself,
    so a piece met before need not be encoded again. Where the tokenizer is of another kind, it is
    called for the whole text.

    Args:
        tokenizer: With special tokens encoded as ordinary text.
        dtype: Of the ids.
    """

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype[Any]) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._ids_of = _Remembered(tokenizer, dtype)
        self.remembers = encodes_piece_by_piece(tokenizer)

    def encode(self, text: str) -> bytes:
        """Return the ids of a text as the bytes of an array."""
        if not self.remembers:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            return np.array(ids, dtype=self._dtype).tobytes()
        # A very long text in pieces: the list of its words would take a hundred times its size.
        return b"".join(map(self._encode_piece, split_long(text)))

    def _encode_piece(self, text: str) -> bytes:
        ids_of = self._ids_of
        if text.isascii():
            return b"".join(map(ids_of.__getitem__, _ASCII_PRETOKEN.findall(text)))
        # What a letter or a space is beyond ASCII is left to the tokenizer.
        return b"".join(
            ids_of[piece]
            for chunk in CUT.split(text)
            for piece in (_ASCII_PRETOKEN.findall(chunk) if chunk.isascii() else split_long(chunk))
        )


def encodes_piece_by_piece(tokenizer: "Tokenizer") -> bool:
    """Return whether a tokenizer is a byte-level BPE with GPT-2's pattern and nothing before it."""
    described = byte_level_parts(tokenizer)
    return (
        described is not None
        and described["pre_tokenizer"].get("use_regex", True)
        and not described["model"].get("dropout")
        and described["truncation"] is described["padding"] is None
    )


class BatchEncoder:
    """Documents to tokens, in one process.

    Args:
        tokenizer_folder: What `data.tokenizing.tokenizer.save_tokenizer` wrote.
    """

    def __init__(self, tokenizer_folder: Path) -> None:
        tokenizer = load_tokenizer(tokenizer_folder)
        self._dtype = token_dtype(vocab_size_of(tokenizer))
        self._encoder = TextEncoder(tokenizer, self._dtype)
        # Whatever a byte-level tokenizer with all bytes reads, it gives back.
        self._lost_bytes = None if gives_back_all(tokenizer) else LostBytes(tokenizer)
        end = end_of_document_id(tokenizer_folder)
        self._end_of_document = np.array([end], dtype=self._dtype).tobytes()

    def __call__(self, documents: Sequence[Document]) -> Encoded:
        """Encode a batch.

        Raises:
            DataError: If a text holds half of a surrogate pair.
        """
        texts = [document.text for document in documents]
        as_bytes = [_utf8(document) for document in documents]
        ids = [self._encoder.encode(text) + self._end_of_document for text in texts]

        def column(numbers: Iterable[int]) -> npt.NDArray[np.int64]:
            return np.fromiter(numbers, np.int64, len(texts))

        return Encoded(
            tokens=np.frombuffer(b"".join(ids), dtype=self._dtype),
            lengths=column(len(some) // self._dtype.itemsize for some in ids),
            utf8_bytes=column(map(len, as_bytes)),
            words=column(map(_count_words, texts)),
            lines=column(text.count("\n") + (not text.endswith("\n")) for text in texts),
            digests=np.fromiter(map(digest, as_bytes), np.uint64, len(texts)),
            lost_bytes=column(
                self._lost_bytes.of(text) if self._lost_bytes else 0 for text in texts
            ),
        )


def _utf8(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{document.where}: character {error.start} is half of a surrogate pair, which UTF-8 "
            "cannot hold; correct or remove it"
        ) from error


def _count_words(text: str) -> int:
    # In pieces, cut between words, since the list of them is many times the text.
    return sum(len(piece.split()) for piece in split_long(text))


def digest(data: bytes) -> int:
    """Return 64 bits of a hash: among n^2 pairs of documents, n^2 / 2^64 false alarms."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def num_cores() -> int:
    """Return the number of cores that this process may use, a container's limit included."""
    import loky

    return int(loky.cpu_count())


def encode_in_order(
    batches: Iterable[Sequence[D]], tokenizer_folder: Path, num_workers: int
) -> Generator[tuple[Sequence[D], Encoded], None, None]:
    """Encode batches in worker processes and yield each with its result, in their order.

    A corpus of one batch, or one worker, is encoded in this process. At most two batches per
    worker are read ahead.

    Raises:
        DataError: If a text holds half of a surrogate pair, or a worker process was killed.
    """
    batches = iter(batches)
    first = list(islice(batches, 2))
    if num_workers == 1 or len(first) < 2:
        encoder = BatchEncoder(tokenizer_folder)
        for batch in chain(first, batches):
            yield batch, encoder(batch)
        return
    import loky

    # Not multiprocessing: its processes import the caller's script again.
    pool = loky.ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        waiting: deque[tuple[Sequence[D], Any]] = deque()
        for batch in chain(first, batches):
            waiting.append((batch, _submitted(pool, tokenizer_folder, batch)))
            if len(waiting) >= 2 * num_workers:
                done, encoded = waiting.popleft()
                yield done, encoded.result()
        for done, encoded in waiting:
            yield done, encoded.result()
    except loky.BrokenProcessPool as error:
        raise DataError(
            "a process that encodes text was killed, perhaps for lack of memory; rerun the same "
            f"command to resume, with fewer of them: data.num_workers={max(1, num_workers // 2)}"
        ) from error
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def _submitted(pool: Any, tokenizer_folder: Path, batch: Sequence[Document]) -> Any:
    """Hand a batch to a pool, which may have to start processes for it."""
    try:
        return pool.submit(_encode_in_worker, str(tokenizer_folder), batch)
    except OSError as error:
        raise DataError(
            f"cannot start a process that encodes text ({error.strerror}); set data.num_workers=1"
        ) from error


def _start_worker(parent: int) -> None:
    # The processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches the whole group; it is the parent's to end its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


@functools.cache
def _encoder_of(tokenizer_folder: str) -> BatchEncoder:
    return BatchEncoder(Path(tokenizer_folder))


def _encode_in_worker(tokenizer_folder: str, batch: Sequence[Document]) -> Encoded:
    return _encoder_of(tokenizer_folder)(batch)
