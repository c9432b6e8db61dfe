"""Little documents for the tests of data."""

import pyarrow

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def sentences(count, start=0):
    """Distinct little documents."""
    return [
        f"{WORDS[i % 10]} {WORDS[i * 7 % 10]}\n{i} é {WORDS[i * 3 % 10]}."
        for i in range(start, start + count)
    ]


def zstandard(data):
    """Compress bytes as one Zstandard frame."""
    return pyarrow.compress(data, codec="zstd", asbytes=True)
