"""Text from a model, token by token, through its KV cache."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modeling.config import SamplingSettings
from modeling.errors import ModelConfigError
from modeling.gpt import GPT
from modeling.kv_cache import KVCache

PREFILL_CHUNK = 1024
"""Tokens of a row that a prompt is fed by."""
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class Prompt(NamedTuple):
    """Prompts of different lengths, as `left_pad` lays them out."""

    tokens: Tensor
    """[b, s] int64; anything where there is no token."""
    is_real: Tensor
    """[b, s] bool, True where there is one."""


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
    if not bool(logits.amax(-1).isfinite().all()):
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


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Prompt:
    """Lay prompts of different lengths side by side, each ending in the last column.

    Args:
        prompts: Token ids of each row.
        device: Of the result.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    is_real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt:
            tokens[row, -len(prompt) :] = torch.tensor(prompt)
            is_real[row, -len(prompt) :] = True
    return Prompt(tokens.to(device), is_real.to(device))


@torch.no_grad()
def prefill(
    model: GPT,
    tokens: Tensor,
    cache: KVCache,
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
    chunk: int = PREFILL_CHUNK,
) -> Tensor:
    """Feed a prompt to the cache, a chunk at a time, so that memory does not grow with its square.

    Args:
        model: In evaluation mode.
        tokens: [b, s] int64, at least one.
        cache: Where keys and values go, behind those that are there.
        positions: [b, s]; if not given, they continue what the cache holds.
        attention_mask: Bool, [b, t], True where a token of the cache or prompt is real.
        chunk: Tokens of a row fed at once.

    Returns:
        The logits behind the last token, [b, n].
    """
    past, s = cache.seen, tokens.shape[1]

    def part(start: int) -> tuple[Tensor, Tensor | None, KVCache, Tensor | None]:
        end = min(start + chunk, s)
        return (
            tokens[:, start:end],
            None if positions is None else positions[:, start:end],
            cache,
            None if attention_mask is None else attention_mask[:, : past + end],
        )

    *others, last = range(0, s, chunk)
    for start in others:
        model.hidden_states(*part(start))
    return model.next_logits(*part(last))


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor | Prompt,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_token: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield new tokens one after the other.

    Args:
        model: In evaluation mode.
        prompt: [b, s] int64, at least one token; or, where rows have different lengths, what
            `left_pad` makes of them. What a row gets does not depend on the other rows' lengths.
        max_new_tokens: At most so many are yielded.
        settings: How each is chosen.
        stop_token: End once every row has produced it; that last step is not yielded. A row that
            stopped earlier yields it again until then.
        cache_dtype: What the KV cache stores, one of `kv_cache.CACHE_DTYPES`; the weights' own if
            not given.

    Yields:
        [b] int64, a token per row.

    Raises:
        ModelConfigError: At the first step, for an empty prompt, a token outside the vocabulary,
            or a text longer than the model's context; later, where a cache of float16 overflows.
    """
    tokens, is_real = prompt if isinstance(prompt, Prompt) else (prompt, None)
    b, s = tokens.shape
    if is_real is not None:
        tokens = tokens.masked_fill(~is_real, 0)
    _check(model, tokens, is_real, max_new_tokens)
    if max_new_tokens < 1:
        return
    positions = mask = None
    if is_real is not None and not bool(is_real.all()):
        # Allocated once; a step takes a view of it.
        mask = torch.ones(b, s + max_new_tokens, dtype=torch.bool, device=tokens.device)
        mask[:, :s] = is_real
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
    generator = torch.Generator(tokens.device).manual_seed(settings.seed)
    cache = model.new_cache(b, s + max_new_tokens, cache_dtype)
    stopped = torch.zeros(b, dtype=torch.bool, device=tokens.device)
    logits = prefill(model, tokens, cache, positions, mask)
    for end in range(s + 1, s + max_new_tokens + 1):
        if overflow := cache.overflow():
            raise ModelConfigError(f"{overflow}; set cache_dtype=bfloat16 or float32")
        chosen = next_token(logits, settings, generator)
        if stop_token is not None:
            stopped |= chosen == stop_token
            if bool(stopped.all()):
                return
            chosen = chosen.masked_fill(stopped, stop_token)
        yield chosen
        if end < s + max_new_tokens:
            logits = model.next_logits(
                chosen.unsqueeze(1),
                None if positions is None else positions[:, end - 1 : end],
                cache,
                None if mask is None else mask[:, :end],
            )


def _check(model: GPT, prompt: Tensor, is_real: Tensor | None, max_new_tokens: int) -> None:
    s, context = prompt.shape[1], model.config.max_position_embeddings
    if prompt.numel() == 0 or (is_real is not None and not bool(is_real.any(dim=1).all())):
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
    cache_dtype: torch.dtype | None = None,
) -> Iterator[str]:
    """Yield the continuation of a prompt piece by piece, as it is generated.

    Joined, the pieces are the text of all tokens behind that of the prompt's. One token is held
    back, since a tokenizer may change the text before the next one, and so is a character whose
    bytes are spread over several tokens.

    Raises:
        ModelConfigError: As in `generate`.
    """
    device = model.embed_tokens.weight.device
    prompt_ids = list(tokenizer.encode(prompt).ids)
    ids = torch.tensor([prompt_ids], dtype=torch.long, device=device)
    produced: list[int] = []
    shown, before = 0, ""
    for token in generate(model, ids, max_new_tokens, settings, stop_token, cache_dtype):
        produced.append(int(token))
        settled = produced[: _without_trailing_bytes(tokenizer, produced)]
        text = _continuation(tokenizer, prompt, prompt_ids, settled)
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if text == before:  # such as behind a token that is not shown
            continue
        pairs = enumerate(zip(before, text, strict=False))
        shorter = min(len(before), len(text))
        stable = max(shown, next((n for n, (a, b) in pairs if a != b), shorter))
        yield text[shown:stable]
        shown, before = stable, text
    yield _continuation(tokenizer, prompt, prompt_ids, produced)[shown:]


def _continuation(
    tokenizer: TextTokenizer, prompt: str, prompt_ids: list[int], ids: list[int]
) -> str:
    """Return the text of tokens as it continues that of a prompt.

    Decoded alone, tokens of most tokenizers lose the space before the first word.
    """
    start, whole = tokenizer.decode(prompt_ids), tokenizer.decode(prompt_ids + ids)
    if not whole.startswith(start):  # they change how the prompt itself is written
        return tokenizer.decode(ids)
    text = whole[len(start) :]
    is_spaced = prompt[-1:].isspace() and not start[-1:].isspace()
    return text.removeprefix(" ") if is_spaced else text


def _without_trailing_bytes(tokenizer: TextTokenizer, ids: list[int]) -> int:
    """Return how many tokens there are before the bytes at the end, such as `<0xE6>`.

    A run of them is decoded as a whole: one that is no UTF-8 in the end makes none of it text.
    """
    name_of = getattr(tokenizer, "id_to_token", lambda id: None)
    end = len(ids)
    while end and _BYTE_TOKEN.fullmatch(name_of(ids[end - 1]) or ""):
        end -= 1
    return end
