"""Permutations that are computed where they are needed and stored nowhere."""

import numpy as np
import numpy.typing as npt

_ROUNDS = 8


class Permutation:
    """A pseudorandom permutation of 0 .. size - 1.

    A Feistel network permutes the numbers of 2 w bits, whatever its round function; what falls
    outside the range is permuted again until it falls inside. Memory does not grow with the size.

    Args:
        size: At least 1, at most 2^62.
        key: Whole numbers from 0; equal keys give equal permutations.

    Source:
        Luby and Rackoff 1988; cycle-walking: Black and Rogaway 2002, "Ciphers with arbitrary
        finite domains". The round function is splitmix64's (Steele et al. 2014).
    """

    def __init__(self, size: int, *key: int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size ({size}) must lie between 1 and 2^62")
        self._size = np.uint64(size)
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half_bits)
        self._mask = np.uint64(2**half_bits - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return where the permutation sends each index, [n] -> [n]."""
        values = np.asarray(indices).astype(np.uint64)
        if values.size and values.max() >= self._size:
            raise IndexError(f"index {values.max()} of a permutation of {self._size}")
        values = self._shuffled(values)
        # The domain is less than four times the range: a few rounds bring all inside.
        while (outside := values >= self._size).any():
            values[outside] = self._shuffled(values[outside])
        return values.astype(np.int64)

    def _shuffled(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._half) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every bit of each value over all of them; overflow wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
