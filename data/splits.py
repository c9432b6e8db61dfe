"""Splits: their names, and which documents go where."""

import hashlib
from collections.abc import Iterable

from data.errors import DataError
from settings.data import DataSettings

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def label_of(split: str, corpus: str) -> str:
    """Name a split of one of the corpora that are mixed; `corpus` is '' where there is only one."""
    return f"{split}.{corpus}" if corpus else split


def split_by_hash(key: bytes, validation_fraction: float) -> str:
    """Choose train or validation from a key alone, so that neither order nor size matters."""
    value = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return VALIDATION if value < validation_fraction * 2**64 else TRAIN


def choose_splits(settings: DataSettings, available: Iterable[str]) -> dict[str, str | None]:
    """Map the source's split names to ours.

    Args:
        settings: Names of the training and validation split.
        available: The names that the source has.

    Returns:
        Source name to "train", "validation" or "test"; the training split maps to None where
        validation documents are to be taken from it. Splits that are not used are left out.

    Raises:
        DataError: If a split that was asked for is missing.
    """
    names = list(available)
    if settings.train_split not in names:
        raise DataError(
            f"data.train_split ({settings.train_split!r}) is not in {settings.path}; "
            f"its splits are {', '.join(names)}"
        )
    chosen: dict[str, str | None] = {settings.train_split: TRAIN}
    if settings.validation_split in names:
        chosen[str(settings.validation_split)] = VALIDATION
    elif settings.validation_split in (None, VALIDATION):
        chosen[settings.train_split] = None
    else:
        raise DataError(
            f"data.validation_split ({settings.validation_split!r}) is not in {settings.path}; "
            f"its splits are {', '.join(names)}; null takes data.validation_fraction of the "
            "training documents"
        )
    if TEST in names and TEST not in chosen:
        chosen[TEST] = TEST
    return chosen
