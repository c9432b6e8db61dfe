"""Likelihoods as a server would see them: token by token, through the KV cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring.errors import EvaluationError
from modeling.gpt import GPT
from modeling.kv_cache import KVCache


class CachedScorer:
    """Scores tokens incrementally, teacher-forced; a `perplexity.Scorer`.

    Args:
        model: In evaluation mode.
        cache_dtype: What the cache stores; the weights' own if None.
    """

    def __init__(self, model: GPT, cache_dtype: torch.dtype | None = None) -> None:
        self._model = model
        self._cache_dtype = cache_dtype
        self._cache: KVCache | None = None

    @torch.no_grad()
    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s], float32 or wider.

        Raises:
            EvaluationError: If a key or value is too large for the cache.
        """
        cache = self._empty_cache(*tokens.shape)
        found = []
        for step in range(tokens.shape[1]):
            logits = self._model.next_logits(tokens[:, step : step + 1], cache=cache)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            found.append(F.cross_entropy(logits, targets[:, step], reduction="none"))
        if overflow := cache.overflow():
            raise EvaluationError(f"{overflow}; set eval.cache_dtype=bfloat16 or float32")
        return torch.stack(found, dim=1)

    def _empty_cache(self, batch: int, length: int) -> KVCache:
        """Return the cache of the last call where it is as large: most windows are alike."""
        cache = self._cache
        if cache is None or (cache.batch_size, cache.max_length) != (batch, length):
            cache = self._model.new_cache(batch, length, self._cache_dtype)
        cache.reset()
        self._cache = cache
        return cache
