"""A causal language model in transformers' own class, measured by kvlab's protocol."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interop.errors import InteropError
from interop.library import in_one_line, refusal, silenced
from modeling.generate import PREFILL_CHUNK
from modeling.kv_cache import storage_bytes

LOGITS_AT_ONCE = 2**27
"""Most logits of a forward pass: 512 MiB in float32."""
_LOGITS_OF_A_SOFTMAX = 2**22
_DECODED = 4
"""Tokens decoded behind the prompt before a cache is measured."""


class TransformersModel:
    """A causal language model of transformers; `measuring.external.ExternalModel`.

    Args:
        model: In evaluation mode, float32.

    Attributes:
        model: The model of transformers.
        vocab_size: Number of token ids that it embeds.
        max_position_embeddings: Tokens of the longest text it was made for; None if it says none.
        positions: "RoPE", "none" where no layer of a family with RoPE has it, or "own".
        is_bound: Whether it cannot be shown more than `max_position_embeddings`.
        window: Tokens that its window layers see, if it has any; None if it names none.
        num_parameters: Each once.
        weight_bytes: Bytes of the weights that a decoding step reads: not what is looked up.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_position_embeddings: int | None = getattr(config, "max_position_embeddings", None)
        has_rope = bool(getattr(config, "rope_parameters", None))
        # One entry a layer, true where it has RoPE, whatever the name says (SmolLM3), or its base
        # (Granite).
        layers = getattr(config, "no_rope_layers", None) or getattr(
            config, "layer_rope_theta", None
        )
        has_rope_somewhere = not layers or any(layers)
        self.positions = ("RoPE" if has_rope_somewhere else "none") if has_rope else "own"
        self.is_bound = not has_rope and self.max_position_embeddings is not None
        self.window: int | None = getattr(config, "sliding_window", None)
        self.num_parameters: int = sum(weight.numel() for weight in model.parameters())
        self.weight_bytes = _weight_bytes(model)
        _count_its_own_layers(model)
        self._takes = set(inspect.signature(model.forward).parameters)
        # Recurrent models call it so.
        self._cache = "cache_params" if "cache_params" in self._takes else "past_key_values"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return cast(torch.device, self.model.device)

    def require_causal(self, name: str) -> None:
        """Refuse a model whose prediction depends on what comes later, or is no number.

        Args:
            name: For the message.

        Raises:
            InteropError: If it does, or is not.
        """
        tokens = torch.arange(8, device=self.device).remainder(self.vocab_size)[None]
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % self.vocab_size
        with torch.no_grad():
            one, two = (self._forward(t, use_cache=False).logits[:, :-1] for t in (tokens, other))
        if not one.isfinite().all():
            raise refusal(
                name,
                f"{type(self.model).__name__} gives logits that are not finite; its weights are "
                "damaged",
            )
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max())):
            raise refusal(
                name,
                f"{type(self.model).__name__} predicts a token from later ones, too; take a causal "
                "language model",
            )

    @torch.no_grad()
    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s], float32 or wider."""
        rows = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * self.vocab_size))
        parts = []
        for some, theirs in zip(tokens.split(rows), targets.split(rows), strict=True):
            logits = self._forward(some, use_cache=False).logits.flatten(0, 1)
            parts.append(_nll(logits, theirs.flatten()).view_as(theirs))
        return torch.cat(parts)

    @torch.no_grad()
    def token_nll_through_cache(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the same, where each token is fed alone, behind its own cache of the others."""
        cache, found = None, []
        for step in range(tokens.shape[1]):
            output = self._forward(tokens[:, step : step + 1], **{self._cache: cache})
            cache = _cache_of(output, self._cache)
            found.append(_nll(output.logits[:, -1], targets[:, step]))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def generate(self, batch_size: int, context_length: int) -> int:
        """Decode greedily with transformers' own `generate`, which makes the cache it likes.

        Args:
            batch_size: Sequences.
            context_length: Tokens of each that the cache holds at the end, at least 2.

        Returns:
            The bytes of the live cache: of the storages of all tensors that it holds.

        Raises:
            InteropError: If there is no cache.
        """
        num_new = min(_DECODED, context_length - 1)
        prompt = torch.zeros(
            batch_size, context_length - num_new, dtype=torch.long, device=self.device
        )
        # A state that a model keeps in its modules, as recurrent ones may, is in no cache.
        _cache_of(self._forward(prompt[:, :1]), self._cache)
        with silenced():
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                # The last one is not fed to the cache.
                max_new_tokens=num_new + 1,
                min_new_tokens=num_new + 1,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=0,
                return_dict_in_generate=True,
            )
        num_bytes = live_bytes(_cache_of(output, "past_key_values"))
        if not num_bytes:
            raise InteropError("this model has no cache: each step computes the whole text")
        return num_bytes

    def decode_step(self, batch: int, context: int) -> "DecodeStep":
        """Return a decoding step behind `context` random tokens, which can be repeated.

        Raises:
            InteropError: If it has no positions for so many, no cache that can be fed, or fails.
        """
        with in_one_line(type(self.model).__name__):
            return DecodeStep(self, batch, context)

    def positions_for(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the argument that lets a model without RoPE take more tokens than it knows.

        A step takes as long at any position.

        Raises:
            InteropError: If the model takes no positions.
        """
        known = self.max_position_embeddings
        if not self.is_bound or known is None or last <= known:
            return {}
        if "position_ids" not in self._takes:
            raise InteropError(f"{type(self.model).__name__} has positions for {known} tokens only")
        positions = torch.arange(first, last, device=self.device).clamp(max=known - 1)
        return {"position_ids": positions[None]}

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, cache: Any, first: int) -> tuple[Tensor, Any]:
        """Feed tokens [b, s] to a cache that holds `first`; None is an empty one.

        Returns:
            The logits [b, n] behind the last of them, and the cache.
        """
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        options |= self.positions_for(first, first + tokens.shape[1])
        output = self._forward(tokens, **{self._cache: cache}, **options)
        return output.logits[:, -1], _cache_of(output, self._cache)

    def _forward(self, tokens: Tensor, **options: Any) -> Any:
        return self.model(input_ids=tokens, **{"use_cache": True, **options})


class DecodeStep:
    """One decoding step that can be repeated: a full cache of transformers' own class.

    A cache that cannot be cropped, of a recurrent layer for example, keeps growing instead.

    Args:
        model: In evaluation mode.
        batch: Sequences.
        context: Tokens of each that the cache holds before the step, random ones.

    Attributes:
        batch: Sequences.
        context: Tokens of each.
        cache_bytes: Bytes of the live cache before the first step.
        cache_bytes_read: That, as if each layer read what it stores alone.
        weight_bytes: Bytes of the weights that a step reads.
        beyond_trained: Whether the model was made for shorter contexts only.
    """

    def __init__(self, model: TransformersModel, batch: int, context: int) -> None:
        self.batch = batch
        self.context = context
        self.weight_bytes = model.weight_bytes
        known = model.max_position_embeddings
        self.beyond_trained = known is not None and context >= known
        self._model = model
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (batch, context + 1), generator=generator)
        self._token = tokens[:, -1:].to(model.device)
        self._cache: Any = None
        # The last one alone, as in decoding: behind a chunk a window layer still stores all of it.
        chunks = [
            *tokens[:, : context - 1].split(PREFILL_CHUNK, dim=1),
            tokens[:, context - 1 : -1],
        ]
        start = 0
        for chunk in (each.to(model.device) for each in chunks if each.shape[1]):
            _, self._cache = model.next_logits(chunk, self._cache, start)
            start += chunk.shape[1]
        self.cache_bytes = self.cache_bytes_read = live_bytes(self._cache)
        self._can_go_back = self._cache.is_croppable
        if self._can_go_back:
            self._cache.activate_past_recording()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the logits [b, n] behind one more token, and forget it."""
        logits, self._cache = self._model.next_logits(self._token, self._cache, self.context)
        if self._can_go_back:
            self._cache.crop(-1)
        return logits


def live_bytes(cache: Any) -> int:
    """Return the bytes of the storages behind all tensors that a cache holds, each once.

    A window layer of transformers stores a window of w tokens where one was fed alone, as in
    decoding; all of a prompt where that was the last that was fed.
    """
    return storage_bytes(_tensors(cache, set()))


def _cache_of(output: Any, key: str) -> Any:
    cache = getattr(output, key, None)
    if not hasattr(cache, "is_croppable"):
        raise InteropError("this model has no cache that tokens can be fed to one by one")
    return cache


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the NLL of targets [rows] under logits [rows, n], some rows at a time."""
    rows = max(1, _LOGITS_OF_A_SOFTMAX // logits.shape[-1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.cat(
        [
            F.cross_entropy(some.to(wide), theirs, reduction="none")
            for some, theirs in zip(logits.split(rows), targets.split(rows), strict=True)
        ]
    )


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.dim():  # others are counters, and widths of windows
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)


def _count_its_own_layers(model: Any) -> None:
    """Let a cache have as many layers as a decoder that is taken alone, of BART say.

    The number of layers that its configuration gives to transformers' cache is the encoder's.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        layers = getattr(config, "decoder_layers", None)
        if config is not None and layers and not config.is_encoder_decoder:
            config.num_hidden_layers = layers


def _weight_bytes(model: Any) -> int:
    """Return the bytes of all weights but the embeddings that a token is looked up in."""
    head = model.get_output_embeddings()
    multiplied = None if head is None else head.weight
    looked_up = {
        id(module.weight): module.weight.nbytes
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not multiplied
    }
    return sum(weight.nbytes for weight in model.parameters()) - sum(looked_up.values())
