"""kvlab's models as lm-evaluation-harness asks them: likelihoods of texts, and continuations.

What is scored, and after which context, is what the harness's own Hugging Face model
(`lm_eval.models.huggingface.HFLM`) does with the same weights; only that a text which looks like a
special token stays text here.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import TaskError
from modeling.config import SamplingSettings
from modeling.generate import generate, left_pad
from modeling.gpt import GPT
from modeling.linear import linear
from tracking.progress import Bar

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from tokenizers import Tokenizer

Tokens = Sequence[int]
MAX_NEW_TOKENS = 256
"""Where a task names no `max_gen_toks`, as in HFLM."""
_TOP_K = 50
"""Where a task samples and names no `top_k`, as in transformers, and so in HFLM."""


class TokenScorer:
    """Scores and continues tokens.

    Args:
        model: In evaluation mode.
        batch_size: Sequences computed together, but for what is sampled; does not change the
            result.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self.context: int = model.config.max_position_embeddings
        self.num_cut = 0
        """Texts so far whose beginning did not fit the context and was left out."""

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding gives it.

        Args:
            pairs: Context and continuation, at least a token each. A context is cut on the left
                where both do not fit the model's.

        Raises:
            TaskError: If a continuation has no token, or more than the model's context.
        """
        # What differs in the last token only is computed once: one-token answers of a question.
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not 0 < len(continuation) <= self.context:
                raise TaskError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model "
                    f"with a context of {self.context}; leave its task out of eval.tasks"
                )
            whole = (*context, *continuation)
            self.num_cut += len(whole) > self.context + 1
            inputs.setdefault(whole[-(self.context + 1) : -1], []).append(index)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for batch in self._batches(inputs, len, self._batch_size):
            tokens = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
            for row, window in enumerate(batch):
                tokens[row, : len(window)] = torch.tensor(window)  # causal: zeros behind are unseen
            hidden = self._model.hidden_states(tokens.to(self._device))
            for row, window in zip(hidden, batch, strict=True):
                continuations = [pairs[index][1] for index in inputs[window]]
                first = len(window) - max(map(len, continuations))
                logits = linear(row[first : len(window)], self._model.output_weight)
                log_probabilities = logits.log_softmax(-1)
                for index, continuation in zip(inputs[window], continuations, strict=True):
                    found[index] = _score(log_probabilities[-len(continuation) :], continuation)
        return found

    def continuations(
        self,
        prompts: Sequence[Tokens],
        max_new_tokens: int,
        settings: SamplingSettings,
        stop_token: int,
        is_done: Callable[[Tokens], bool],
    ) -> list[list[int]]:
        """Continue prompts until each is done, has produced the stop token, or is long enough.

        Args:
            prompts: At least a token each; cut on the left where they leave too little room.
            max_new_tokens: Most new tokens of each; less than the model's context.
            settings: How tokens are chosen.
            stop_token: Ends a continuation.
            is_done: Says of the tokens produced so far that more change nothing.

        Returns:
            The new tokens of each; some may have more behind their end.
        """
        room = self.context - max_new_tokens
        self.num_cut += sum(len(prompt) > room for prompt in prompts)
        found: list[list[int]] = [[] for _ in prompts]
        # What is drawn for one may not depend on what is computed with it.
        together = 1 if settings.temperature > 0 else self._batch_size
        for batch in self._batches(range(len(prompts)), lambda i: len(prompts[i]), together):
            rows = left_pad([prompts[index][-room:] for index in batch], self._device)
            open_rows = set(range(len(batch)))
            # A request that a task repeats gets another text.
            drawn = dataclasses.replace(settings, seed=settings.seed + batch[0])
            for chosen in generate(self._model, rows, max_new_tokens, drawn, stop_token):
                for row, token in enumerate(chosen.tolist()):
                    found[batch[row]].append(token)
                open_rows -= {
                    row
                    for row in open_rows
                    if found[batch[row]][-1] == stop_token or is_done(found[batch[row]])
                }
                if not open_rows:
                    break
        return found

    @property
    def _device(self) -> torch.device:
        return self._model.embed_tokens.weight.device

    @staticmethod
    def _batches(items: Any, length: Callable[[Any], int], size: int) -> Iterator[list[Any]]:
        """Yield batches of items of like length, the longest first: memory runs out at once."""
        ordered = sorted(items, key=length, reverse=True)
        with Bar("tasks") as bar:
            watch = bar.count("answering", "texts")
            for start in range(0, len(ordered), size):
                watch(start, len(ordered))
                yield ordered[start : start + size]


def _score(log_probabilities: Tensor, continuation: Tokens) -> tuple[float, bool]:
    targets = torch.tensor(continuation, device=log_probabilities.device)
    chosen = log_probabilities.gather(1, targets.unsqueeze(1))
    return float(chosen.sum()), bool((log_probabilities.argmax(-1) == targets).all())


def language_model(
    model: GPT, tokenizer: "Tokenizer", end_of_document_id: int, batch_size: int
) -> "TemplateLM":
    """Return a model as the harness takes one; `num_cut` counts what its context was too short for.

    Args:
        model: In evaluation mode.
        tokenizer: That of its training; text that looks like a special token is encoded as text.
        end_of_document_id: What a text without context is scored after, and what ends a text.
        batch_size: Sequences computed together, but for what is sampled; does not change the
            result.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class KvlabLM(TemplateLM):
        """A model of kvlab's; batching and truncation as HFLM has them."""

        def __init__(self) -> None:
            super().__init__()
            self.scorer = TokenScorer(model, batch_size)

        @property
        def eot_token_id(self) -> int:
            return end_of_document_id

        @property
        def max_length(self) -> int:
            return self.scorer.context

        @property
        def num_cut(self) -> int:
            return self.scorer.num_cut

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> list[int]:
            ids: list[int] = tokenizer.encode(string, add_special_tokens=False).ids
            return ids

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            # A context of spaces alone has gone to the continuation; HFLM fails there.
            return self.scorer.log_likelihoods(
                [(context or [end_of_document_id], rest) for _, context, rest in requests]
            )

        def loglikelihood_rolling(
            self, requests: list["Instance"], disable_tqdm: bool = False
        ) -> list[float]:
            windows: list[tuple[list[int], list[int]]] = []
            counts = []
            for request in requests:
                ids = self.tok_encode(request.args[0])
                rolling = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, 1)
                found = [make_disjoint_window(window) for window in rolling]
                windows += found
                counts.append(len(found))
            scores = iter(self.scorer.log_likelihoods(windows))
            return [sum(next(scores)[0] for _ in range(count)) for count in counts]

        def generate_until(
            self, requests: list["Instance"], disable_tqdm: bool = False
        ) -> list[str]:
            by_options: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                by_options.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
            texts = [""] * len(requests)
            for indices in by_options.values():
                prompts = [requests[index].args[0] for index in indices]
                wanted = normalize_gen_kwargs(requests[indices[0]].args[1], MAX_NEW_TOKENS)
                stops = [*wanted.pop("until"), tokenizer.id_to_token(end_of_document_id)]
                found = _continued(
                    *(self.scorer, tokenizer, prompts, stops, end_of_document_id), wanted
                )
                for index, text in zip(indices, found, strict=True):
                    texts[index] = postprocess_generated_text(text, stops, None)
            return texts

    return KvlabLM()


def _continued(
    scorer: TokenScorer,
    tokenizer: "Tokenizer",
    prompts: list[str],
    stops: list[str],
    end: int,
    wanted: dict[str, Any],
) -> list[str]:
    """Continue prompts until a stop, by normalised `generation_kwargs` without it.

    Raises:
        TaskError: If there is no room, or the sampler has no such setting.
    """
    max_new_tokens, settings = wanted.pop("max_gen_toks"), _sampling(wanted)
    if not 0 < max_new_tokens < scorer.context:
        raise TaskError(
            f"generation_kwargs.max_gen_toks is {max_new_tokens} ({MAX_NEW_TOKENS} where a "
            f"task gives none), which with a prompt does not fit a context of "
            f"{scorer.context}; leave the task out of eval.tasks"
        )

    def is_done(tokens: Tokens) -> bool:
        text = tokenizer.decode(tokens)
        return any(stop and stop in text for stop in stops)

    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    found = scorer.continuations(
        [ids or [end] for ids in encoded], max_new_tokens, settings, end, is_done
    )
    return [tokenizer.decode(tokens) for tokens in found]


def _sampling(options: dict[str, Any]) -> SamplingSettings:
    """Return what a task's `generation_kwargs`, normalised, say of how tokens are chosen.

    Raises:
        TaskError: If they ask for what kvlab's sampler does not have, or for nonsense.
    """
    temperature = float(options.pop("temperature", 0.0))
    # The harness has set it to 0 for `false` alone; transformers takes 0 for that, too.
    temperature = temperature if options.pop("do_sample") else 0.0
    top_k = options.pop("top_k", _TOP_K) or None  # 0 and null keep all
    top_p = options.pop("top_p", None)
    if options:
        raise TaskError(
            f"generation_kwargs.{', '.join(options)}: kvlab's sampler has do_sample, temperature, "
            "top_k and top_p; leave the task out of eval.tasks"
        )
    settings = SamplingSettings(temperature, top_k, 1.0 if top_p is None else top_p)
    if problems := settings.problems():
        raise TaskError(f"generation_kwargs: {'; '.join(problems)}")
    return settings
