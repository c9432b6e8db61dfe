"""How good a model is so far: its score on the validation split, and what it writes."""

from collections.abc import Callable

import torch

from data.documents import opening
from data.prepared import PreparedData
from measuring.perplexity import Score, score
from measuring.windows import windows_for
from modeling.config import SamplingSettings
from modeling.generate import generate_text
from modeling.gpt import GPT
from settings.evaluation import EvalSettings


def validate(
    model: GPT,
    prepared: PreparedData,
    settings: EvalSettings,
    device: torch.device,
    max_tokens: int | None,
    watch: Callable[[int, int], None],
) -> Score:
    """Score the validation split in float32, leaving model mode and random state as they were.

    Args:
        model: Being trained.
        prepared: The corpus.
        settings: Context, stride and batch size.
        device: Where the model is.
        max_tokens: Score only the split's first ones; None scores all.
        watch: Called with the tokens scored and their total; what it raises ends the scoring.
    """
    context, stride = windows_for(settings, model.config)
    model.eval()
    stream, size = prepared.stream("validation"), settings.batch_size
    result = score(model, stream, context, stride, size, device, max_tokens, watch)
    model.train()
    return result


def write_sample(
    model: GPT,
    prepared: PreparedData,
    asked: str | None,
    num_tokens: int,
    sampling: SamplingSettings,
) -> str:
    """Continue a prompt, as far as the context reaches.

    Args:
        model: In evaluation mode.
        prepared: Its tokenizer, and the text that a prompt is taken from if none is set.
        asked: The prompt, if one is set.
        num_tokens: Length of the continuation.
        sampling: How tokens are drawn.

    Returns:
        The prompt and its continuation.
    """
    tokenizer = prepared.tokenizer()
    prompt = opening(prepared) if asked is None else asked
    room = model.config.max_position_embeddings - len(tokenizer.encode(prompt).ids)
    if room < 1:
        return f"{prompt} [fills the context: no room for a sample]"
    length = min(num_tokens, room)
    return prompt + "".join(generate_text(model, tokenizer, prompt, length, sampling))
