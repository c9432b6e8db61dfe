"""Text from a model, token by token, through its KV cache."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.gpt import GPT


def next_token(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: [b, n].
        settings: Temperature and truncation.
        generator: Source of randomness; the global one is left alone.

    Returns:
        [b] int64.

    Raises:
        ModelConfigError: If a logit is not a number.

    Source:
        Nucleus (top-p) sampling: Holtzman et al. 2020 (arXiv 1904.09751).
    """
    if bool(logits.isnan().any()):
        raise ModelConfigError("the model's logits are not numbers; its weights are broken")
    if settings.temperature == 0.0:
        return logits.argmax(dim=-1)
    # In float64 a tiny temperature sharpens to the likeliest token instead of overflowing.
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        kept = logits.topk(settings.top_k)  # exactly k, ties or not
        logits = torch.full_like(logits, float("-inf")).scatter(1, kept.indices, kept.values)
    if settings.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A token stays if those before it do not reach top_p: the likeliest one always does.
        outside = probability.cumsum(-1) - probability >= settings.top_p
        logits = logits.masked_fill(outside.scatter(1, order, outside), float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_token: int | None = None,
) -> Iterator[Tensor]:
    """Yield new tokens one after the other.

    Args:
        model: In evaluation mode.
        prompt: [b, s] int64, at least one token.
        max_new_tokens: At most so many are yielded.
        settings: How each is chosen.
        stop_token: End once every row has produced it; that last step is not yielded. A row that
            stopped earlier goes on being yielded until then.

    Yields:
        [b] int64, a token per row.

    Raises:
        ModelConfigError: At the first step, for an empty prompt, a token outside the vocabulary,
            or a text longer than the model's context.
    """
    b, s = prompt.shape
    context = model.config.max_position_embeddings
    if s < 1:
        raise ModelConfigError("the prompt is empty; give at least one token")
    if s + max_new_tokens > context:
        raise ModelConfigError(
            f"a prompt of {s} tokens and {max_new_tokens} new ones do not fit the model's context "
            f"of {context}; "
            + (f"set max_new_tokens to {context - s} or less" if s < context else "shorten it")
        )
    if not 0 <= int(prompt.min()) <= int(prompt.max()) < model.embed_tokens.num_embeddings:
        raise ModelConfigError(
            f"the prompt has a token outside the vocabulary of {model.embed_tokens.num_embeddings}"
        )
    if max_new_tokens < 1:
        return
    generator = torch.Generator(prompt.device).manual_seed(settings.seed)
    cache = model.new_cache(b, s + max_new_tokens)
    stopped = torch.zeros(b, dtype=torch.bool, device=prompt.device)
    tokens = prompt
    for _ in range(max_new_tokens):
        logits = model(tokens, cache=cache)[:, -1]
        chosen = next_token(logits, settings, generator)
        if stop_token is not None:
            stopped |= chosen == stop_token
            if bool(stopped.all()):
                return
        yield chosen
        tokens = chosen.unsqueeze(1)


class TextTokenizer(Protocol):
    """What turns text into ids and back, such as `tokenizers.Tokenizer`."""

    def encode(self, text: str) -> Any:
        """Return an object whose `ids` are the tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        ...


def generate_text(
    model: GPT,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_token: int | None = None,
) -> Iterator[str]:
    """Yield the continuation of a prompt piece by piece, as it is generated.

    A character whose bytes are spread over several tokens is held back until it is whole.

    Raises:
        ModelConfigError: As in `generate`.
    """
    device = model.embed_tokens.weight.device
    ids = torch.tensor([tokenizer.encode(prompt).ids], dtype=torch.long, device=device)
    produced: list[int] = []
    shown = 0
    for token in generate(model, ids, max_new_tokens, settings, stop_token):
        produced.append(int(token))
        text = tokenizer.decode(produced)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[shown:]
            shown = len(text)
    yield tokenizer.decode(produced)[shown:]
