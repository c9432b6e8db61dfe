"""Every document of the sources, once, in order, into the token shards of its split."""

import dataclasses
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.errors import DataError
from data.preparing.journal import Journal
from data.shards.manifest import SplitCounts
from data.shards.shard import ShardWriter
from data.sources.corpus import Corpus, Document, Part
from data.splits import TEST, TRAIN, VALIDATION, label_of
from data.tokenizing.encoding import Encoded, LoneSurrogateError, encode_in_order, num_cores
from data.tokenizing.tokenizer import Tokens
from files.sizes import in_units
from settings.data import DataSettings

# Text encoded at once by one process; its tokens and texts take some ten times as much memory.
_BATCH_CHARACTERS = 2**20


class Source(NamedTuple):
    """A corpus, its settings, and its name among several that are mixed ('' where there is one)."""

    name: str
    settings: DataSettings
    corpus: Corpus


class Position(NamedTuple):
    """How far the sources are read: parts before this one, and documents of this one."""

    part: int = 0
    documents: int = 0


class _Waiting(NamedTuple):
    """A document that is being encoded."""

    position: Position
    split: str
    document: Document
    num_empty: int


class Packer:
    """Encode documents into shards and count them.

    Held-out documents come first, so that a training document can be compared with them.

    Args:
        folder: Where the shards go.
        sources: What is read.
        settings: Of the whole preparation: shard size, workers, whether leaks are dropped.
        dtype: Of the tokens.
        journal: Records every whole shard.
        base_state: What the journal records besides.
        begun: What the journal holds of an interrupted preparation.
        say: Takes lines for the user.

    Attributes:
        num_read: Documents that were not empty.
        num_empty: Rows and files without text, which are left out.
        leaks: Documents of one split that are, character for character, in another one.
    """

    def __init__(
        self,
        folder: Path,
        sources: list[Source],
        settings: DataSettings,
        dtype: np.dtype[Any],
        journal: Journal,
        base_state: dict[str, Any],
        begun: tuple[dict[str, Any], dict[str, Tokens]] | None,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._sources = sources
        self._settings = settings
        self._dtype = dtype
        self._journal = journal
        self._base_state = base_state
        self._say = say
        self._units = [(source, part) for source in sources for part in source.corpus.parts]
        self._units.sort(key=lambda unit: _held_out_first(*unit))
        self._position = Position()
        self._counts: dict[str, dict[str, int]] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._held_out: dict[str, set[int]] = {TEST: set(), VALIDATION: set()}
        self._held_out_arrays: dict[str, Tokens] = dict.fromkeys(
            self._held_out, np.empty(0, np.uint64)
        )
        self._full: set[str] = set()
        self.num_read = self.num_empty = self._empty_so_far = 0
        self._documents = [0] * len(self._units)  # taken from each of them
        self.leaks = {f"{TRAIN} in {split}": 0 for split in (TEST, VALIDATION)}
        self.leaks[f"{VALIDATION} in {TEST}"] = 0
        state, arrays = begun or ({}, {})
        for source in sources:
            for split in source.corpus.splits:
                self._open_split(label_of(split, source.name), state, arrays)
            self._note_limit(source)
        if "position" in state:
            self._position = Position(*state["position"])
            self.num_read = state["num_read"]
            self.num_empty = self._empty_so_far = state.get("num_empty", 0)
            self._documents = state["documents"]
            self.leaks = state["leaks"]
            for split, known in self._held_out.items():
                self._held_out_arrays[split] = arrays[f"held_out-{split}"]
                known |= set(self._held_out_arrays[split].tolist())

    def _open_split(self, label: str, state: dict[str, Any], arrays: dict[str, Tokens]) -> None:
        done = state.get("splits", {}).get(label, {})
        none = dict.fromkeys(("documents", "utf8_bytes", "words", "lost_bytes"), 0)
        self._counts[label] = none | done.get("counts", {})
        self._writers[label] = ShardWriter(
            self._folder,
            label,
            self._dtype,
            self._settings.shard_tokens,
            done.get("shards", ()),
            arrays.get(f"tail-{label}"),
        )

    def run(self, tokenizer_folder: Path) -> dict[str, dict[str, Any]]:
        """Read, encode and write everything that is not written yet.

        Returns:
            By label (`data.prepared.label_of`) the counts of SplitCounts and the list of shards.

        Raises:
            DataError: If a document cannot be read or encoded, or there is no room on the disk.
        """
        from tqdm import tqdm

        waiting: deque[list[_Waiting]] = deque()
        encoded = encode_in_order(self._batches(waiting), tokenizer_folder, self._num_workers())
        done = sum(counts["utf8_bytes"] for counts in self._counts.values())
        # disable=None: no bar where the output is not a terminal.
        with (
            closing(encoded),
            tqdm(
                initial=done,
                unit="B",
                unit_scale=True,
                desc="encoding",
                disable=None,
                dynamic_ncols=True,
            ) as bar,
        ):
            is_first = True
            while True:
                try:
                    batch = next(encoded, None)
                except LoneSurrogateError as error:
                    raise _surrogate(waiting[0][error.args[0]].document, error.args[1]) from error
                if batch is None:
                    break
                if is_first:
                    bar.total = self._expected_bytes(batch)
                    is_first = False
                documents = waiting.popleft()
                wrote_shard = self._add(documents, batch)
                self._position = documents[-1].position
                self._empty_so_far = documents[-1].num_empty
                if wrote_shard:
                    self._commit()
                bar.update(int(batch.utf8_bytes.sum()))
        for writer in self._writers.values():
            writer.finish()
        return {
            label: {
                **dataclasses.asdict(SplitCounts(tokens=writer.num_tokens, **self._counts[label])),
                "shards": writer.shards,
            }
            for label, writer in self._writers.items()
        }

    def documents_of(self, source: Source) -> list[int]:
        """Return how many documents, empty ones left out, each part of a source has given."""
        given = {
            id(part): number for (_, part), number in zip(self._units, self._documents, strict=True)
        }
        return [given[id(part)] for part in source.corpus.parts]

    def _num_workers(self) -> int:
        """Choose as many processes as asked for, or as there are cores and batches for."""
        if self._settings.num_workers is not None:
            return self._settings.num_workers
        sizes = [source.corpus.text_bytes for source in self._sources]
        if None in sizes:
            return num_cores()
        batches = sum(size or 0 for size in sizes) // _BATCH_CHARACTERS
        return max(1, min(num_cores(), batches))

    def _batches(self, waiting: deque[list[_Waiting]]) -> Iterator[list[str]]:
        """Read on from the position; what is yielded to be encoded is noted in `waiting`."""
        batch: list[_Waiting] = []
        num_characters = 0
        for index in range(self._position.part, len(self._units)):
            source, part = self._units[index]
            if self._is_full(source, part):
                continue
            done = self._position.documents if index == self._position.part else 0
            for number, document in enumerate(part.read(), start=1):
                if number <= done:
                    continue
                if not document.text:
                    self.num_empty += 1
                    continue
                split = source.corpus.split_of(part, document)
                batch.append(_Waiting(Position(index, number), split, document, self.num_empty))
                num_characters += len(document.text)
                if num_characters >= _BATCH_CHARACTERS:
                    waiting.append(batch)
                    yield [one.document.text for one in batch]
                    batch, num_characters = [], 0
                    if self._is_full(source, part):
                        break
        if batch:
            waiting.append(batch)
            yield [one.document.text for one in batch]

    def _add(self, documents: list[_Waiting], encoded: Encoded) -> bool:
        """Write a batch; return whether it filled a shard."""
        wrote_shard = False
        ends = np.cumsum(encoded.lengths)
        starts = ends - encoded.lengths
        for index, (position, split, *_) in enumerate(documents):
            source, part = self._units[position.part]
            # Whatever was read beyond the limit is left out: how far that is depends on timing.
            if self._is_full(source, part):
                continue
            self.num_read += 1
            self._documents[position.part] += 1
            if self._leaks(split, int(encoded.digests[index])) and (
                split == TRAIN and self._settings.drop_leaked_documents
            ):
                continue
            label = label_of(split, source.name)
            tokens = encoded.tokens[starts[index] : ends[index]]
            wrote_shard |= self._writers[label].add(tokens)
            counts = self._counts[label]
            counts["documents"] += 1
            counts["utf8_bytes"] += int(encoded.utf8_bytes[index])
            counts["words"] += int(encoded.words[index])
            counts["lost_bytes"] += int(encoded.lost_bytes[index])
            if source.settings.count_line_ends_as_words:
                counts["words"] += int(encoded.lines[index])
            self._note_limit(source)
        return wrote_shard

    def _is_full(self, source: Source, part: Part) -> bool:
        """Tell whether nothing more is wanted of a part: its training split has its limit."""
        return part.split in (TRAIN, None) and source.name in self._full

    def _note_limit(self, source: Source) -> None:
        limit = source.settings.max_train_tokens
        writer = self._writers.get(label_of(TRAIN, source.name))
        if limit is not None and writer is not None and writer.num_tokens >= limit:
            self._full.add(source.name)

    def _leaks(self, split: str, digest: int) -> bool:
        """Tell whether a document is in a split held out from it too, and count it."""
        found = False
        for held_out, known in self._held_out.items():
            if held_out == split:
                known.add(digest)
                break
            if digest in known:
                self.leaks[f"{split} in {held_out}"] += 1
                found = True
        return found

    def _commit(self) -> None:
        splits = {
            label: {"counts": self._counts[label], "shards": writer.shards}
            for label, writer in self._writers.items()
        }
        state = self._base_state | {
            "position": self._position,
            "num_read": self.num_read,
            "num_empty": self._empty_so_far,
            "documents": self._documents,
            "leaks": self.leaks,
            "splits": splits,
        }
        arrays: dict[str, Tokens] = {
            f"tail-{label}": writer.tail for label, writer in self._writers.items()
        }
        for split, known in self._held_out.items():
            if len(self._held_out_arrays[split]) != len(known):
                self._held_out_arrays[split] = np.fromiter(sorted(known), np.uint64, len(known))
            arrays[f"held_out-{split}"] = self._held_out_arrays[split]
        self._journal.commit(state, arrays)

    def _expected_bytes(self, first: Encoded) -> int | None:
        """Estimate the text there is to encode; None if a source cannot tell.

        Raises:
            DataError: If its tokens do not fit on the disk, with the estimate and what is free;
                where the estimate is a guess, that is said instead.
        """
        tokens_per_byte = len(first.tokens) / int(first.utf8_bytes.sum())
        expected, is_known = 0.0, True
        for source in self._sources:
            size, limit = source.corpus.text_bytes, source.settings.max_train_tokens
            bounds = [] if size is None else [float(size)]
            bounds += [] if limit is None else [limit / tokens_per_byte]
            expected += min(bounds, default=0.0)
            is_known &= bool(bounds)
        tokens = expected * tokens_per_byte
        written = sum(writer.num_tokens for writer in self._writers.values())
        needed = int((tokens - written) * self._dtype.itemsize)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            problem = (
                f"data.name {self._settings.name}: about {in_units(needed)} of tokens "
                f"({tokens:,.0f} of {self._dtype.itemsize} bytes, judged by the first text) do not "
                f"fit in the {in_units(free)} free at {self._folder.parent}; free space, set "
                "data.prepared_dir to another disk, or lower data.max_train_tokens"
            )
            if all(source.corpus.text_bytes_are_known for source in self._sources):
                raise DataError(problem)
            self._say(f"{problem}. The size of the text is a guess, so this goes on")
        return int(expected) if is_known else None


def _held_out_first(source: Source, part: Part) -> tuple[int, float]:
    # Among parts that are split by hash, what the largest share holds out the others hold out too
    # or train on: then it is found.
    order = {TEST: 0, VALIDATION: 1, None: 2, TRAIN: 3}[part.split]
    return order, -source.corpus.validation_fraction if part.split is None else 0.0


def _surrogate(document: Document, character: int) -> DataError:
    return DataError(
        f"{document.where}: character {character} is half of a surrogate pair, which UTF-8 "
        "cannot hold; correct or remove it"
    )
