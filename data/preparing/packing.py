"""Every document of the corpora, once, in order, into the token shards of its split."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from data.preparing.estimate import require_room
from data.preparing.journal import Begun, Journal
from data.shards.manifest import SplitCounts
from data.shards.shard import ShardWriter
from data.sources.corpus import Corpus, Document, Part
from data.splits import TEST, TRAIN, VALIDATION
from data.tokenizing.encoding import Encoded, encode_in_order, num_cores
from data.tokenizing.tokenizer import Tokens
from settings.data import DataSettings

# Text encoded at once by one process; its tokens and texts take some ten times as much memory.
_BATCH_CHARACTERS = 2**20


@dataclasses.dataclass(slots=True)
class _Read(Document):
    """A document, its split, and how far the corpora were read with it."""

    split: str
    part: int
    number: int  # of the document in its part, from 1
    num_empty: int


@dataclasses.dataclass
class Progress:
    """How far a preparation is.

    Attributes:
        documents: Taken from each part; those that are empty left out.
        part: Parts before this one are done.
        number: And so many documents of this one.
        num_empty: Rows and files without text up to there.
        leaks: Documents of one split that are, character for character, in another one.
    """

    documents: list[int]
    part: int = 0
    number: int = 0
    num_empty: int = 0
    leaks: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(
            (f"{TRAIN} in {TEST}", f"{TRAIN} in {VALIDATION}", f"{VALIDATION} in {TEST}"), 0
        )
    )

    @property
    def num_read(self) -> int:
        """Documents that were not empty."""
        return sum(self.documents)


class Packer:
    """Encode documents into shards and count them.

    Held-out documents come first, so that a training document can be compared with them.

    Args:
        folder: Where the shards go.
        corpora: What is read.
        settings: Of the whole preparation: shard size, workers, whether leaks are dropped.
        dtype: Of the tokens.
        journal: Records every whole shard.
        base_state: What the journal records as well.
        begun: What the journal holds of an interrupted preparation.
        say: Takes lines for the user.

    Attributes:
        progress: How far it is.
        num_empty: Rows and files without text read so far, which are left out.
    """

    def __init__(
        self,
        folder: Path,
        corpora: list[Corpus],
        settings: DataSettings,
        dtype: np.dtype[Any],
        journal: Journal,
        base_state: dict[str, Any],
        begun: Begun | None,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._corpora = corpora
        self._settings = settings
        self._dtype = dtype
        self._journal = journal
        self._base_state = base_state
        self._say = say
        self._units = [(corpus, part) for corpus in corpora for part in corpus.parts]
        self._units.sort(key=lambda unit: _held_out_first(*unit))
        state, arrays = begun or ({}, {})
        self.progress = Progress(**state.get("progress", {"documents": [0] * len(self._units)}))
        self.num_empty = self.progress.num_empty
        self._writers = {
            label: ShardWriter(
                folder,
                label,
                dtype,
                settings.shard_tokens,
                state.get("splits", {}).get(label, {}),
                arrays.get(f"tail-{label}"),
            )
            for corpus in corpora
            for label in map(corpus.label, corpus.splits)
        }
        # Hashes of the documents of each held-out split, and what the journal has of them.
        self._held_out_arrays: dict[str, Tokens] = {
            split: arrays.get(f"held_out-{split}", np.empty(0, np.uint64))
            for split in (TEST, VALIDATION)
        }
        self._held_out = {
            split: set(array.tolist()) for split, array in self._held_out_arrays.items()
        }

    def run(self, tokenizer_folder: Path) -> dict[str, dict[str, Any]]:
        """Read, encode and write everything that is not written yet.

        Returns:
            By label (`data.splits.label_of`) the counts of SplitCounts and the list of shards.

        Raises:
            DataError: If a document cannot be read or encoded, or does not fit on the disk.
            OSError: If a shard cannot be written.
        """
        from tqdm import tqdm

        encoded = encode_in_order(self._batches(), tokenizer_folder, self._num_workers())
        # disable=None: no bar where the output is not a terminal.
        with (
            closing(encoded),
            tqdm(
                initial=sum(writer.counts["utf8_bytes"] for writer in self._writers.values()),
                unit="B",
                unit_scale=True,
                desc="encoding",
                disable=None,
                dynamic_ncols=True,
            ) as bar,
        ):
            for number, (documents, batch) in enumerate(encoded):
                if number == 0:
                    written = sum(writer.num_tokens for writer in self._writers.values())
                    bar.total = require_room(
                        self._folder, self._corpora, self._settings, batch, written, self._say
                    )
                if self._add(documents, batch):
                    self._commit()
                bar.update(int(batch.utf8_bytes.sum()))
        return {label: _finished(writer) for label, writer in self._writers.items()}

    def documents_of(self, corpus: Corpus) -> list[int]:
        """Return how many documents, empty ones left out, each part of a corpus has given."""
        units = zip(self._units, self.progress.documents, strict=True)
        given = {id(part): number for (_, part), number in units}
        return [given[id(part)] for part in corpus.parts]

    def _num_workers(self) -> int:
        """Choose as many processes as asked for, or as there are cores and batches for."""
        if self._settings.num_workers is not None:
            return self._settings.num_workers
        sizes = [corpus.text_bytes for corpus in self._corpora]
        if None in sizes:
            return num_cores()
        batches = sum(size or 0 for size in sizes) // _BATCH_CHARACTERS
        return max(1, min(num_cores(), batches))

    def _batches(self) -> Iterator[list[_Read]]:
        """Read on from where the progress is."""
        batch: list[_Read] = []
        num_characters = 0
        begun, done = self.progress.part, self.progress.number
        for index, (corpus, part) in enumerate(self._units):
            if index < begun or self._is_full(corpus, part):
                continue
            for number, document in enumerate(part.read(), start=1):
                if index == begun and number <= done:
                    continue
                if not document.text:
                    self.num_empty += 1
                    continue
                split = corpus.split_of(part, document)
                batch.append(
                    _Read(document.text, document.where, split, index, number, self.num_empty)
                )
                num_characters += len(document.text)
                if num_characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch, num_characters = [], 0
                    if self._is_full(corpus, part):
                        break
        if batch:
            yield batch

    def _add(self, documents: Sequence[_Read], encoded: Encoded) -> bool:
        """Write a batch; return whether it filled a shard."""
        progress, wrote_shard = self.progress, False
        ends = np.cumsum(encoded.lengths)
        starts = ends - encoded.lengths
        for index, document in enumerate(documents):
            corpus, part = self._units[document.part]
            # Whatever was read beyond the limit is left out: how far that is depends on timing.
            if self._is_full(corpus, part):
                continue
            progress.documents[document.part] += 1
            if self._leaks(document.split, int(encoded.digests[index])) and (
                document.split == TRAIN and self._settings.drop_leaked_documents
            ):
                continue
            writer = self._writers[corpus.label(document.split)]
            wrote_shard |= writer.add(encoded.tokens[starts[index] : ends[index]])
            words = encoded.words[index]
            if corpus.settings.count_line_ends_as_words:
                words += encoded.lines[index]
            writer.counts.update(
                documents=1,
                utf8_bytes=int(encoded.utf8_bytes[index]),
                words=int(words),
                lost_bytes=int(encoded.lost_bytes[index]),
            )
        last = documents[-1]
        progress.part, progress.number, progress.num_empty = last.part, last.number, last.num_empty
        return wrote_shard

    def _is_full(self, corpus: Corpus, part: Part) -> bool:
        """Return whether nothing more is wanted of a part: its training split has its limit."""
        limit = corpus.settings.max_train_tokens
        return (
            limit is not None
            and part.split in (TRAIN, None)
            and self._writers[corpus.label(TRAIN)].num_tokens >= limit
        )

    def _leaks(self, split: str, digest: int) -> bool:
        """Return whether a document is in a split held out from it too, and count it."""
        found = False
        for held_out, known in self._held_out.items():
            if held_out == split:
                known.add(digest)
                break
            if digest in known:
                self.progress.leaks[f"{split} in {held_out}"] += 1
                found = True
        return found

    def _commit(self) -> None:
        state = self._base_state | {
            "progress": dataclasses.asdict(self.progress),
            "splits": {label: writer.state for label, writer in self._writers.items()},
        }
        arrays = {f"tail-{label}": writer.tail for label, writer in self._writers.items()}
        for split, known in self._held_out.items():
            if len(self._held_out_arrays[split]) != len(known):
                self._held_out_arrays[split] = np.fromiter(sorted(known), np.uint64, len(known))
            arrays[f"held_out-{split}"] = self._held_out_arrays[split]
        self._journal.commit(state, arrays)


def _finished(writer: ShardWriter) -> dict[str, Any]:
    writer.finish()
    counts = {key: writer.counts[key] for key in ("documents", "utf8_bytes", "words", "lost_bytes")}
    sizes = SplitCounts(tokens=writer.num_tokens, **counts)
    return {**dataclasses.asdict(sizes), "shards": writer.shards}


def _held_out_first(corpus: Corpus, part: Part) -> tuple[int, float]:
    # Among parts that are split by hash, what the largest share holds out the others hold out too
    # or train on: then it is found.
    order = {TEST: 0, VALIDATION: 1, None: 2, TRAIN: 3}[part.split]
    return order, -corpus.settings.validation_fraction if part.split is None else 0.0
