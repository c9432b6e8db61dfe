"""Perplexity of count models, to see what a network's perplexity is worth."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.shards.stream import TokenStream

# More would hardly change the estimate.
MAX_COUNTED_TOKENS = 20_000_000
_CHUNK_TOKENS = 2**20


@dataclass(frozen=True)
class CountModel:
    """Unigram and bigram counts of a token stream, smoothed.

    With c counts, N the number of tokens, V the vocabulary size and T(a) the number of distinct
    tokens seen after a:

        unigram  p(b)     = (c(b) + 1) / (N + V)
        bigram   p(b | a) = (c(a, b) + T(a) p(b)) / (c(a) + T(a)),  p(b) where a was never followed

    The second line is lambda_a c(a, b) / c(a) + (1 - lambda_a) p(b) with
    lambda_a = c(a) / (c(a) + T(a)).

    Source:
        Add-one: Laplace. Bigram: Witten and Bell 1991, method C, interpolated as in Chen and
        Goodman 1999, section 2.4.
    """

    vocab_size: int
    unigram: npt.NDArray[np.float64]  # [n] probabilities
    pair_keys: npt.NDArray[np.int64]  # sorted a * n + b
    pair_counts: npt.NDArray[np.int64]
    context_counts: npt.NDArray[np.int64]  # [n] c(a) as the first of a pair
    follower_types: npt.NDArray[np.int64]  # [n] T(a)

    @classmethod
    def count(cls, stream: TokenStream, num_tokens: int, vocab_size: int) -> "CountModel":
        """Count the beginning of a stream; memory grows with the distinct pairs, not with it.

        Args:
            stream: Token ids below vocab_size.
            num_tokens: How many of them, from the first; at least 1.
            vocab_size: Number of ids.

        Returns:
            The smoothed model.
        """
        tokens = np.zeros(vocab_size, dtype=np.int64)
        tokens[stream.window(0, 1)] += 1
        keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for previous, current in _consecutive(stream, num_tokens):
            tokens += np.bincount(current, minlength=vocab_size)
            new_keys, new_counts = np.unique(previous * vocab_size + current, return_counts=True)
            keys, inverse = np.unique(np.concatenate((keys, new_keys)), return_inverse=True)
            # Sums of whole numbers below 2^53 are exact in bincount's float64.
            counts = np.bincount(inverse, np.concatenate((counts, new_counts))).astype(np.int64)
        firsts = keys // vocab_size
        return cls(
            vocab_size=vocab_size,
            unigram=(tokens + 1.0) / (num_tokens + vocab_size),
            pair_keys=keys,
            pair_counts=counts,
            context_counts=np.bincount(firsts, counts, minlength=vocab_size).astype(np.int64),
            follower_types=np.bincount(firsts, minlength=vocab_size),
        )

    def bigram(
        self, previous: npt.NDArray[np.int64], current: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return p(current | previous), elementwise.

        Args:
            previous: [s] int64 token ids.
            current: [s] int64 token ids.

        Returns:
            [s] float64 probabilities.
        """
        keys = previous * self.vocab_size + current
        pair_counts = np.zeros(len(keys), dtype=np.int64)
        if len(self.pair_keys):
            at = np.minimum(np.searchsorted(self.pair_keys, keys), len(self.pair_keys) - 1)
            pair_counts = np.where(self.pair_keys[at] == keys, self.pair_counts[at], 0)
        types = self.follower_types[previous]
        unigram = self.unigram[current]
        # max(., 1) only avoids 0 / 0; such contexts take the unigram.
        seen = np.maximum(self.context_counts[previous] + types, 1)
        return np.where(types > 0, (pair_counts + types * unigram) / seen, unigram)


def _consecutive(
    stream: TokenStream, num_tokens: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield (previous, current) arrays that cover each of num_tokens but the first once."""
    for start in range(0, num_tokens - 1, _CHUNK_TOKENS):
        window = stream.window(start, min(_CHUNK_TOKENS + 1, num_tokens - start))
        yield window[:-1], window[1:]


def count_baselines(
    train: TokenStream, validation: TokenStream, vocab_size: int
) -> dict[str, float]:
    """Score the validation stream with counts of the training stream.

    Every validation token but the first is scored, as in a model's evaluation.

    Args:
        train: Tokens to count; the first MAX_COUNTED_TOKENS of them.
        validation: Tokens to score; at least two.
        vocab_size: Number of ids.

    Returns:
        `unigram_perplexity`, `bigram_perplexity` and `counted_train_tokens`.
    """
    counted = min(len(train), MAX_COUNTED_TOKENS)
    model = CountModel.count(train, counted, vocab_size)
    unigram_nats = bigram_nats = 0.0
    for previous, current in _consecutive(validation, len(validation)):
        unigram_nats -= float(np.log(model.unigram[current]).sum())
        bigram_nats -= float(np.log(model.bigram(previous, current)).sum())
    scored = len(validation) - 1
    return {
        "unigram_perplexity": math.exp(unigram_nats / scored),
        "bigram_perplexity": math.exp(bigram_nats / scored),
        "counted_train_tokens": counted,
    }
