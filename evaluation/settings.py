"""Settings of evaluation. Nothing here imports torch."""

from dataclasses import dataclass


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
