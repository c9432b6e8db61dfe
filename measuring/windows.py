"""What the settings of an evaluation mean for one model."""

from measuring.errors import EvaluationError
from modeling.config import GPTConfig
from settings.evaluation import EvalSettings


def windows_for(settings: EvalSettings, model: GPTConfig) -> tuple[int, int]:
    """Return context and stride for a model, its own context where null.

    Raises:
        EvaluationError: If the model cannot be shown such windows.
    """
    context = settings.context or model.max_position_embeddings
    stride = settings.stride or context
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


def cache_context_for(settings: EvalSettings, model: GPTConfig) -> int:
    """Return the tokens at which a model's cache is stated, its own context where null.

    Raises:
        EvaluationError: If the model cannot be shown so many.
    """
    context, known = settings.cache_context, model.max_position_embeddings
    if context is not None and model.position_embedding == "learned" and context > known:
        raise EvaluationError(
            f"eval.cache_context ({context}) is longer than the {known} positions that the "
            "model learns; set eval.cache_context to that or less"
        )
    return context or known
