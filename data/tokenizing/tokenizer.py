"""Tokenizers, all stored in one format: tokenizer.json with a tokenizer_config.json."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from files.regular_file import read_regular_file
from files.strict_json import read_json_object
from files.synced import write_synced
from settings.data import TokenizerSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model

Tokens = npt.NDArray[np.integer[Any]]

END_OF_TEXT = "<|endoftext|>"
# Where a text may be cut: no match of GPT-2's pattern goes from a non-space to a space.
CUT = re.compile(r"(?<=\S)(?=[ \n])")
# A merge looks through whole words, so that the time of training grows with their squared length.
_MAX_RUN = 512
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{_MAX_RUN + 1},}}|(?<!\s)\s{{{_MAX_RUN + 1},}}")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# A vocabulary of some hundred thousand takes 20 MB.
_MAX_BYTES = 2**28


def _byte_level(model: "Model") -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bytes_tokenizer() -> "Tokenizer":
    """Build the tokenizer of the 256 bytes, ids 1 to 256, with the end-of-text token as id 0.

    It is a byte-level BPE without merges, so that it needs no code of its own anywhere.
    """
    from tokenizers import AddedToken, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {END_OF_TEXT: 0} | {letter: i for i, letter in enumerate(alphabet, start=1)}
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def train_bpe(texts: Iterable[str], settings: TokenizerSettings) -> "Tokenizer":
    """Train a byte-level BPE; the same texts in the same order give the same tokenizer.

    Args:
        texts: Training documents only; the first `max_training_bytes` of them are read.
        settings: Size of the vocabulary and limit of the training text.

    Returns:
        A tokenizer with the end-of-text token as id 0 and all 256 bytes, so that it can encode
        any text.

    Source:
        Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2).
    """
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Its bars are drawn on a terminal only.
        show_progress=sys.stderr.isatty(),
    )
    pieces = cut_long_runs(first_bytes(texts, settings.max_training_bytes))
    # A lone surrogate is reported where the document is encoded.
    encodable = (piece.encode("utf-8", "replace").decode() for piece in pieces)
    tokenizer.train_from_iterator(encodable, trainer=trainer)
    return tokenizer


def first_bytes(texts: Iterable[str], num_bytes: float) -> Iterator[str]:
    """Yield texts, long ones in pieces, up to the piece that reaches so many UTF-8 bytes."""
    for text in texts:
        for piece in split_long(text):
            yield piece
            num_bytes -= len(piece.encode("utf-8", "replace"))
            if num_bytes <= 0:
                return


def cut_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """Cut runs of one kind, without white space or of nothing else, to at most 512 characters.

    For training alone, which would take hours for a megabyte in one word (DNA, base64, a line of
    Chinese); what has no such run is yielded as it is.
    """
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            for cut in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                yield text[start:cut]
                start = cut
        yield text[start:]


def save_tokenizer(tokenizer: "Tokenizer", end_of_document: str, folder: Path) -> None:
    """Write the files that transformers' AutoTokenizer opens.

    Raises:
        OSError: If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_document,
        "eos_token": end_of_document,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    contents = (_as_stored(tokenizer), (json.dumps(config, indent=2) + "\n").encode())
    for name, content in zip(TOKENIZER_FILES, contents, strict=True):
        write_synced(folder / name, content)


def sha256_of_tokenizer(tokenizer: "Tokenizer") -> str:
    """Return the hash of what `save_tokenizer` writes of a tokenizer."""
    return hashlib.sha256(_as_stored(tokenizer)).hexdigest()


def _as_stored(tokenizer: "Tokenizer") -> bytes:
    text: str = tokenizer.to_str(pretty=True)
    return text.encode()


def load_tokenizer(folder: Path) -> "Tokenizer":
    """Open a saved tokenizer; text that looks like a special token is encoded as ordinary text.

    Raises:
        DataError: If the folder holds no tokenizer.
    """
    path = folder / TOKENIZER_FILES[0]
    try:
        text = read_regular_file(path, _MAX_BYTES).decode()
    except OSError as error:
        raise DataError(f"no tokenizer at {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a tokenizer (it is not UTF-8)") from error
    tokenizer = _parsed(text, path)
    # Not stored in the file; without it a document could contain its own end.
    tokenizer.encode_special_tokens = True
    return tokenizer


def is_of_the_library(error: BaseException) -> bool:
    """Return whether the library raised this, and not Ctrl-C or the like."""
    # What panics in Rust is no Exception, and its class cannot be imported.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _parsed(text: str, path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
    except BaseException as error:
        if not is_of_the_library(error):
            raise
        raise DataError(f"{path} is not a tokenizer ({error})") from error
    if not ids:
        raise DataError(f"{path} is not a tokenizer (its vocabulary is empty)")
    return tokenizer


def byte_level_parts(tokenizer: "Tokenizer") -> dict[str, Any] | None:
    """Return the parts of a byte-level BPE that changes nothing before; None of another kind."""
    described: dict[str, Any] = json.loads(tokenizer.to_str())
    before = described["pre_tokenizer"] or {}
    is_one = (
        described["model"]["type"] == "BPE"
        and described["normalizer"] is None
        and before.get("type") == "ByteLevel"
        and not before["add_prefix_space"]
        and all(token["special"] for token in described["added_tokens"])
    )
    return described if is_one else None


def end_of_document_id(folder: Path) -> int:
    """Return the id of the token that ends each document.

    Raises:
        DataError: If the folder's files do not say.
    """
    path = folder / TOKENIZER_FILES[1]
    try:
        token = read_json_object(path, _MAX_BYTES).get("eos_token")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} does not name an eos_token ({error})") from error
    if not isinstance(token, str):
        raise DataError(f"{path} does not name an eos_token; it must be a text")
    # A text that UTF-8 cannot hold is in no vocabulary.
    token_id = load_tokenizer(folder).token_to_id(token.encode("utf-8", "replace").decode())
    if token_id is None:
        raise DataError(f"{path}: eos_token {token!r} is not in the vocabulary")
    return token_id


def vocab_size_of(tokenizer: "Tokenizer") -> int:
    """Return one more than the largest id, which is what an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def split_long(text: str, max_characters: int = 2**20) -> Iterator[str]:
    """Cut a long text where a byte-level tokenizer of this module cuts it anyway.

    Encoding the pieces one after the other gives the tokens of the whole, with bounded memory.

    Args:
        text: Any text.
        max_characters: Pieces are this long, or longer where there is no place to cut.

    Yields:
        Pieces that join to the text.
    """
    start = 0
    while len(text) - start > max_characters:
        cut = CUT.search(text, start + max_characters)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]
