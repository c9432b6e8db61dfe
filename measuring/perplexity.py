"""Score every token of a split once."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from measuring.errors import BrokenWeights, EvaluationError

_LARGEST_NLL = 700.0
"""Nats per token; of more, a float does not hold the perplexity."""


class Tokens(Protocol):
    """A stream of token ids, such as `data.prepared.TokenStream`."""

    def __len__(self) -> int:
        """Tokens there are."""
        ...

    def window(self, start: int, length: int) -> np.ndarray:
        """Return tokens [start, start + length), int64."""
        ...


class Scorer(Protocol):
    """Whatever scores tokens, such as `modeling.gpt.GPT`."""

    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s]."""
        ...


@dataclass(frozen=True)
class Window:
    """One forward pass: `length` inputs from `start`, of whose targets the last `scored` count."""

    start: int
    length: int
    scored: int


def windows(num_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Yield windows that score each of tokens 1 .. num_tokens - 1 exactly once.

    The first window scores up to `context` targets, every other the next `stride` with as much
    context before them as fits. Token 0 has no context and is not scored.

    Args:
        num_tokens: Length of the stream.
        context: Most inputs of a window.
        stride: Targets newly scored per window, at most `context`.

    Source:
        Rolling windows as in lm-evaluation-harness (`get_rolling_token_windows`).
    """
    done = 1  # tokens that need no more scoring
    while done < num_tokens:
        scored = min(context if done == 1 else stride, num_tokens - done)
        end = done + scored  # one past the last target
        start = max(0, end - 1 - context)
        yield Window(start=start, length=end - 1 - start, scored=scored)
        done = end


@dataclass(frozen=True)
class Score:
    """The sum of negative log-likelihoods over a split.

    Args:
        nll_sum: Nats, summed in float64.
        tokens_scored: Targets it is over.
        window_nll: Nats per window, in order.
        window_tokens: Targets per window.
        document_nll: Nats per document, in order: what intervals are computed from. The token that
            ends a document belongs to it.
        document_tokens: Targets per document.
    """

    nll_sum: float
    tokens_scored: int
    window_nll: list[float]
    window_tokens: list[int]
    document_nll: list[float]
    document_tokens: list[int]

    @property
    def nll(self) -> float:
        """Nats per token."""
        return self.nll_sum / self.tokens_scored

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nll)

    def word_perplexity(self, num_words: int) -> float | None:
        """Return exp(nats / words of the original text); None if a float cannot hold it."""
        if num_words < 1 or self.nll_sum / num_words > 700:
            return None
        return math.exp(self.nll_sum / num_words)

    def bits_per_byte(self, num_bytes: int) -> float:
        """Return bits per UTF-8 byte of the original text."""
        return self.nll_sum / (math.log(2) * num_bytes)


@torch.no_grad()
def score(
    model: Scorer,
    stream: Tokens,
    context: int,
    stride: int,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    max_tokens: int | None = None,
    before_batch: Callable[[int, int], None] = lambda done, total: None,
    end_of_document: int | None = None,
) -> Score:
    """Score every token of a stream once, except the first.

    Args:
        model: In evaluation mode.
        stream: The tokens of a split.
        context: Most inputs of a window.
        stride: Targets newly scored per window, 1 <= stride <= context.
        batch_size: Windows per forward pass.
        device: Where the model is.
        max_tokens: Score only the stream's first `max_tokens`, for a quick look during training.
        before_batch: Called before each forward pass with the number of targets scored and that of
            all; what it raises ends the scoring.
        end_of_document: The token that ends a document; None takes the stream as one document.

    Raises:
        EvaluationError: If there is nothing to score, or the model's likelihoods are not finite.
    """
    num_tokens = len(stream) if max_tokens is None else min(len(stream), max_tokens)
    if num_tokens < 2:
        raise EvaluationError(
            f"a split of {num_tokens} tokens has nothing to score; prepare data with more text in "
            "it (data.validation_fraction)"
        )
    if not 1 <= stride <= context:
        raise EvaluationError(f"eval.stride ({stride}) must be from 1 to the context ({context})")
    window_nll: list[float] = []
    window_tokens: list[int] = []
    documents = _Documents(end_of_document, first=int(stream.window(0, 1)[0]))
    for batch in _batches(windows(num_tokens, context, stride), batch_size):
        before_batch(sum(window_tokens), num_tokens - 1)
        rows = np.stack([stream.window(w.start, w.length + 1) for w in batch])
        tokens = torch.from_numpy(rows).to(device)
        nll = model.token_nll(tokens[:, :-1], tokens[:, 1:]).double().cpu()
        for window, row, ids in zip(batch, nll, rows, strict=True):
            scored = row[window.length - window.scored :]
            window_nll.append(float(scored.sum()))
            window_tokens.append(window.scored)
            documents.add(ids[-window.scored :], scored.numpy())
    total = math.fsum(window_nll)
    if not math.isfinite(total) or total > _LARGEST_NLL * sum(window_tokens):
        what = "that no number can hold" if math.isfinite(total) else "that are not finite numbers"
        if _is_half(model):
            raise BrokenWeights(
                f"the model gives likelihoods {what} in float16, which holds no number above "
                "65,504; score it in float32 or bfloat16"
            )
        raise BrokenWeights(
            f"the model gives likelihoods {what}; its weights are broken, train it again with a "
            "lower optim.learning_rate"
        )
    return Score(
        total, sum(window_tokens), window_nll, window_tokens, documents.nll, documents.tokens
    )


class _Documents:
    """Sums the nats of consecutive targets by document.

    Args:
        end: The token that ends a document; None: there is one document.
        first: The stream's first token, which is no target.
    """

    def __init__(self, end: int | None, first: int) -> None:
        self._end = end
        self.nll: list[float] = [0.0]
        self.tokens: list[int] = [0]
        self._is_ended = first == end

    def add(self, targets: np.ndarray, nll: np.ndarray) -> None:
        """Take the next targets [n] and their nats [n]."""
        is_end = targets == self._end if self._end is not None else np.zeros(len(targets), bool)
        begin = 0
        for stop in sorted({*(np.flatnonzero(is_end) + 1).tolist(), len(targets)}):
            if self._is_ended:
                self.nll.append(0.0)
                self.tokens.append(0)
            self.nll[-1] += float(nll[begin:stop].sum())
            self.tokens[-1] += stop - begin
            self._is_ended = bool(is_end[stop - 1])
            begin = stop


def _is_half(model: Scorer) -> bool:
    """Return whether a model of finite weights computes in float16, whose range is small."""
    weights = list(model.parameters()) if isinstance(model, nn.Module) else []
    return any(weight.dtype == torch.float16 for weight in weights) and all(
        bool(weight.isfinite().all()) for weight in weights
    )


def _batches(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Group windows of equal length, in order, at most `size` together."""
    batch: list[Window] = []
    for item in items:
        if batch and (len(batch) == size or item.length != batch[0].length):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
