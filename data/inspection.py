"""What a prepared corpus looks like: sizes, lengths, duplicates, samples, and floors."""

import math
from array import array
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.documents import split_documents
from data.prepared import PreparedData
from data.shards.stream import TokenStream
from data.splits import TRAIN
from data.tokenizing.encoding import digest
from guards.printable import printable

_BAR_WIDTH = 40
_SAMPLES = 3
_SAMPLE_TOKENS = 64


class MeasuredDocuments(NamedTuple):
    """The documents of a split.

    Attributes:
        lengths: [n] int64 tokens of each, without the end-of-document token.
        digests: [n] uint64 hashes of their tokens.
    """

    lengths: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]

    @property
    def num_repeated(self) -> int:
        """Documents that are, token for token, an earlier one."""
        return len(self.digests) - len(np.unique(self.digests))


def measure_documents(stream: TokenStream, end_of_document_id: int) -> MeasuredDocuments:
    """Measure every document of a stream, in 16 bytes of memory for each."""
    lengths, digests = array("q"), array("Q")
    for tokens in split_documents(stream, end_of_document_id):
        lengths.append(len(tokens))
        digests.append(digest(tokens.tobytes()))
    return MeasuredDocuments(np.array(lengths, dtype=np.int64), np.array(digests, dtype=np.uint64))


def describe(prepared: PreparedData) -> str:
    """Describe a prepared corpus in plain text.

    Raises:
        DataError: If a shard cannot be read.
    """
    documents: dict[str, MeasuredDocuments] = {}
    # The splits that a mixture unites before the united ones, which are not read again.
    for split in sorted(prepared.splits, key=lambda split: len(prepared.parts_of(split))):
        parts = prepared.parts_of(split)
        if parts == [split]:
            stream = prepared.stream(split)
            documents[split] = measure_documents(stream, prepared.end_of_document_id)
        else:
            united = zip(*(documents[part] for part in parts), strict=True)
            documents[split] = MeasuredDocuments(*map(np.concatenate, united))
    documents = {split: documents[split] for split in prepared.splits}
    sections = [
        _heading(prepared),
        _sizes(prepared),
        *(
            f"tokens per document, {split}\n{_histogram(documents[split].lengths)}"
            for split in documents
            if "." not in split
        ),
        _duplicates(prepared, documents),
        _samples(prepared),
        (
            "perplexity of count models on the validation split, floors to compare with: unigram "
            f"{prepared.baselines['unigram_perplexity']:.2f}, bigram "
            f"{prepared.baselines['bigram_perplexity']:.2f} (counted on "
            f"{prepared.baselines['counted_train_tokens']:,} training tokens)"
        ),
    ]
    return "\n\n".join(sections)


def _heading(prepared: PreparedData) -> str:
    source = prepared.source
    known = [f"{key} {source[key]}" for key in ("path", "config", "commit") if source.get(key)]
    return (
        f"{prepared.folder}\n{prepared.name}: {', '.join([source['source'], *known])}; vocabulary "
        f"{prepared.vocab_size:,}, tokenizer {prepared.tokenizer_sha256[:12]}, fingerprint "
        f"{prepared.fingerprint[:12]}"
    )


def _sizes(prepared: PreparedData) -> str:
    headers = ("split", "documents", "tokens", "UTF-8 bytes", "words", "tokens/byte")
    rows = [[*headers, "tokens/word", "shards"]]
    for split, counts in prepared.splits.items():
        sizes = (counts.documents, counts.tokens, counts.utf8_bytes, counts.words)
        ratios = (f"{counts.tokens / unit:.3f}" if unit else "" for unit in sizes[2:])
        shards = str(prepared.num_shards[split])
        rows.append([split, *(f"{size:,}" for size in sizes), *ratios, shards])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _histogram(lengths: npt.NDArray[np.int64]) -> str:
    """Count lengths in classes that double: 0, 1, 2-3, 4-7 and so on."""
    if not len(lengths):
        return "none"
    # frexp's exponent is the number of binary digits.
    classes = np.frexp(lengths.astype(np.float64))[1]
    counts = np.bincount(classes)
    lines = []
    for number in range(int(classes.min()), len(counts)):
        low, high = (2 ** (number - 1), 2**number - 1) if number else (0, 0)
        bar = "#" * math.ceil(_BAR_WIDTH * counts[number] / counts.max())
        label = f"{low:,}" if low == high else f"{low:,} - {high:,}"
        lines.append(f"{label:>23} {counts[number]:>11,} {bar}".rstrip())
    quantiles = np.quantile(lengths, (0.5, 0.9)).round().astype(int)
    lines.append(
        f"median {quantiles[0]:,}, 90 % at most {quantiles[1]:,}, longest {lengths.max():,}"
    )
    return "\n".join(lines)


def _duplicates(prepared: PreparedData, documents: dict[str, MeasuredDocuments]) -> str:
    lines = ["exact duplicates"]
    for split, some in documents.items():
        number, share = some.num_repeated, some.num_repeated / max(len(some.lengths), 1)
        lines.append(f"{split}: {number:,} documents repeat an earlier one ({share:.2%})")
    fate = "dropped" if prepared.dropped_leaks else "kept"
    lines += [
        f"{where} too: {number:,}" + (f" ({fate})" if number and where.startswith(TRAIN) else "")
        for where, number in prepared.leaks.items()
        if set(where.split(" in ")) <= prepared.splits.keys()
    ]
    return "\n".join(lines)


def _samples(prepared: PreparedData) -> str:
    stream, tokenizer = prepared.stream(TRAIN), prepared.tokenizer()
    length = min(_SAMPLE_TOKENS, len(stream))
    random = np.random.default_rng(0)
    parts = []
    for start in np.sort(random.integers(0, len(stream) - length + 1, _SAMPLES)):
        ids = stream.window(int(start), length).tolist()
        text = printable(tokenizer.decode(ids, skip_special_tokens=False))
        parts.append(f"train, tokens {start:,} to {start + length - 1:,}\n{text}")
    return "\n\n".join(parts)
