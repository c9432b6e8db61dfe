"""Settings of evaluation. Nothing here imports torch."""

from dataclasses import dataclass

from evaluation.errors import EvaluationError
from modeling.config import GPTConfig


@dataclass
class EvalSettings:
    """How perplexity is measured, and the KV cache with it."""

    name: str = "default"
    context: int | None = None
    """Tokens a window shows the model at most; null takes the model's own context."""
    stride: int | None = None
    """Tokens newly scored per window; null takes the context: disjoint windows, the fast way."""
    batch_size: int = 16
    """Windows scored together; does not change the result."""
    cache_batch_size: int = 1
    """Sequences in the decode that measures the KV cache."""

    def windows(self, model: GPTConfig) -> tuple[int, int]:
        """Return context and stride for a model, its own context where null.

        Raises:
            EvaluationError: If the model cannot be shown such windows.
        """
        context = self.context or model.max_position_embeddings
        stride = self.stride or context
        if stride > context:
            raise EvaluationError(
                f"eval.stride ({stride}) must not exceed the context ({context}); set eval.stride "
                f"to {context} or less"
            )
        if model.position_embedding == "learned" and context > model.max_position_embeddings:
            raise EvaluationError(
                f"eval.context ({context}) is longer than the {model.max_position_embeddings} "
                f"positions that the model learns; set eval.context to that or less"
            )
        return context, stride

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = []
        for key in ("context", "stride", "batch_size", "cache_batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                found.append(f"eval.{key} ({value}) must be at least 1")
        if self.context is not None and self.stride is not None and self.stride > self.context:
            found.append(
                f"eval.stride ({self.stride}) must not exceed eval.context ({self.context}), or "
                "tokens between windows would go unscored"
            )
        return found
