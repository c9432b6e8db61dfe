"""How much text there is to encode, and whether its tokens fit on the disk."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import DataError
from data.sources.corpus import Corpus
from data.tokenizing.encoding import Encoded
from files.sizes import in_units
from settings.data import DataSettings


def require_room(
    folder: Path,
    corpora: Sequence[Corpus],
    settings: DataSettings,
    first: Encoded,
    num_written: int,
    say: Callable[[str], None],
) -> int | None:
    """Estimate the text by its first batch, and refuse it where its tokens do not fit.

    Args:
        folder: Where the shards go.
        corpora: What is read.
        settings: Of the whole preparation, for the message.
        first: The first batch of text as tokens.
        num_written: Tokens that are on the disk already.
        say: Takes lines for the user.

    Returns:
        The UTF-8 bytes of all text; None if a corpus has no estimate.

    Raises:
        DataError: If the tokens do not fit, with the estimate and what is free; where the estimate
            is a guess, that is said instead.
    """
    itemsize = first.tokens.itemsize
    tokens_per_byte = len(first.tokens) / int(first.utf8_bytes.sum())
    expected, is_known = 0.0, True
    for corpus in corpora:
        size, limit = corpus.text_bytes, corpus.settings.max_train_tokens
        bounds = [] if size is None else [float(size)]
        bounds += [] if limit is None else [limit / tokens_per_byte]
        expected += min(bounds, default=0.0)
        is_known &= bool(bounds)
    tokens = expected * tokens_per_byte
    needed = int((tokens - num_written) * itemsize)
    free = shutil.disk_usage(folder).free
    if needed > free:
        problem = (
            f"data.name {settings.name}: about {in_units(needed)} of tokens ({tokens:,.0f} of "
            f"{itemsize} bytes, judged by the first text) do not fit in the {in_units(free)} free "
            f"at {folder.parent}; free space, set data.prepared_dir to another disk, or lower "
            "data.max_train_tokens"
        )
        if all(corpus.text_bytes_are_known for corpus in corpora):
            raise DataError(problem)
        say(f"{problem}. The size of the text is a guess, so preparation continues")
    return int(expected) if is_known else None
