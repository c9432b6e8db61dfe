"""What a preparation has done so far, so that an interrupted one can be resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.shards.shard import Shard, write_array
from data.tokenizing.tokenizer import Tokens
from files.regular_file import sha256_of_file
from files.sealed import sealed, unsealed
from files.strict_json import read_json_object
from files.synced import fsync_folder, write_synced

# The state of a preparation and its arrays.
Begun = tuple[dict[str, Any], dict[str, Tokens]]

_NAME = "journal.json"
_ARRAYS = "journal-"
# Shards and arrays are files of their own; a shard is a line here.
_MAX_BYTES = 2**26


class Journal:
    """The state of a preparation, in the folder that it fills.

    A commit is whole or not there: its arrays have names of their own, and one rename makes them
    valid. An array that is the same object as in the commit before is not written again.

    Args:
        folder: Where the preparation works.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._written: dict[str, tuple[Tokens, dict[str, Any]]] = {}

    def commit(self, state: Mapping[str, Any], arrays: Mapping[str, Tokens]) -> None:
        """Record where the preparation is; what was recorded before is forgotten.

        Args:
            state: JSON values; `shards` and other files it names by {"file", "sha256"} must be on
                the disk.
            arrays: By name.

        Raises:
            OSError: If it cannot be written; the former record is then still there.
        """
        self._number += 1
        written = {}
        for name, array in arrays.items():
            if name in self._written and self._written[name][0] is array:
                written[name] = self._written[name]
                continue
            path = self._folder / f"{_ARRAYS}{self._number:06d}-{name}.npy"
            written[name] = array, {"file": path.name, **write_array(path, array)}
        recorded = {name: entry for name, (_, entry) in written.items()}
        record = {"number": self._number, "state": state, "arrays": recorded}
        text = json.dumps(sealed(record))
        new = self._folder / f"{_NAME}.new"
        write_synced(new, text.encode())
        # The files that it names must be durable before it is.
        fsync_folder(self._folder)
        new.replace(self._folder / _NAME)
        fsync_folder(self._folder)
        for _, entry in self._written.values():
            if entry not in recorded.values():
                (self._folder / entry["file"]).unlink(missing_ok=True)
        self._written = written

    def load(self) -> Begun | None:
        """Return the last commit's state and arrays; what was written after it is written again.

        Returns:
            None if there is no commit, or a file that it names is not what was written.

        Raises:
            DataError: If a file that is there cannot be read.
        """
        arrays = {}
        try:
            record = unsealed(read_json_object(self._folder / _NAME, _MAX_BYTES))
            state = record["state"]
            for entry in _files_in(record):
                path = self._folder / entry["file"]
                # Its name alone, so that none lies outside the folder.
                if path.name != entry["file"] or sha256_of_file(path) != entry["sha256"]:
                    return None
            for name, entry in record["arrays"].items():
                shard = Shard(self._folder / entry["file"])
                arrays[name] = shard.read(0, len(shard))
            self._number = int(record["number"])
            self._written = {name: (arrays[name], record["arrays"][name]) for name in arrays}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise DataError(
                f"{self._folder} holds an interrupted preparation that cannot be read ({error}); "
                "make it readable, or delete it to start over"
            ) from error
        return state, arrays

    def remove(self) -> None:
        """Forget everything: the preparation is complete."""
        for path in self._folder.glob("journal*"):
            path.unlink()


def _files_in(node: Any) -> Any:
    """Yield every {"file", "sha256"} in nested values."""
    if isinstance(node, dict):
        if "file" in node and "sha256" in node:
            yield node
        for value in node.values():
            yield from _files_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from _files_in(value)
