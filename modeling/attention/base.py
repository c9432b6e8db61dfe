"""The contract of an attention: its configuration, its module, and the registry of names."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from modeling.errors import ModelConfigError
from modeling.kv_cache import CacheEntries, LayerCache


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ABC):
    """What every attention has; a variant adds its own fields.

    Fields are spelt as in transformers' Llama and DeepSeek-V3.

    Raises:
        ModelConfigError: If a value or a combination is impossible; all problems at once.
    """

    hidden_size: int
    """m, width of the residual stream."""
    num_attention_heads: int
    """h, query heads."""
    qk_rope_head_dim: int
    """r, dimensions per head that RoPE rotates; 0 leaves RoPE out."""
    v_head_dim: int
    """v, width of a value head."""
    rope_theta: float = 10000.0
    """Base of RoPE's frequencies."""
    attention_bias: bool = False
    """Biases on the projections that have one in transformers' class of the same attention."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights, in training only."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ModelConfigError(problems)

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key."""
        found = at_least(self, 1, "hidden_size", "num_attention_heads", "v_head_dim")
        found += at_least(self, 0, "qk_rope_head_dim")
        if self.qk_rope_head_dim % 2:
            found.append(
                f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even, since RoPE rotates "
                f"pairs; set {self._sizes_with_even_heads()}"
            )
        if not 0.0 <= self.attention_dropout < 1.0:
            found.append(
                f"attention_dropout ({self.attention_dropout}) must be in [0, 1); "
                "set model.attention.attention_dropout=0.1, say"
            )
        if not (1.0 < self.rope_theta < float("inf")):
            found.append(
                f"rope_theta ({self.rope_theta}) must be a finite number above 1; "
                "set model.attention.rope_theta=10000"
            )
        return found

    def _sizes_with_even_heads(self) -> str:
        """Say what to set where `qk_rope_head_dim` is odd: what it was worked out from, if so."""
        width, heads, rotated = self.hidden_size, self.num_attention_heads, self.qk_rope_head_dim
        for part in (1, 2):  # all of a head, or MLA's half
            if heads > 0 and part * rotated * heads == width:
                unit = 2 * part * heads
                widths = [str(n) for n in (width // unit * unit, (width // unit + 1) * unit) if n]
                counts = [n for n in range(1, width) if width % (2 * part * n) == 0]
                nearest = min(counts, key=lambda n: abs(n - heads), default=None)
                other = f", or model.num_attention_heads={nearest}" if nearest else ""
                return f"model.hidden_size={' or '.join(widths)}{other}"
        return f"model.attention.qk_rope_head_dim={rotated + 1}"

    def problems_as(self, name: str) -> list[str]:
        """Return every reason why these values do not deserve the registered `name`."""
        del name
        return []

    @abstractmethod
    def build(self, layer_idx: int = 0) -> Attention:
        """Build the module; `layer_idx` counts from 0."""

    @abstractmethod
    def num_parameters(self) -> int:
        """Return the number of parameters of the built module, in closed form."""

    @abstractmethod
    def flops_per_token(self, context_length: int) -> float:
        """Return forward FLOPs per token: a multiply-add is two, causal, mean over the context."""

    @abstractmethod
    def kv_cache_entries(self) -> CacheEntries:
        """Return what a token leaves in the cache: entry name -> (heads, width)."""

    @abstractmethod
    def kv_cache_elements_per_token(self) -> int:
        """Return the elements a token leaves in this layer's cache, in closed form."""

    def with_kv_cache_elements(self, elements: int) -> Self:
        """Return this configuration with a cache of `elements` per token, or the nearest to it.

        Which width is free for that is the attention's to say; one that has none stays as it is.
        """
        del elements
        return self


class Attention(nn.Module, ABC):
    """An attention layer: [b, s, m] in, [b, s, m] out.

    Args:
        config: Its configuration, kept as `self.config`.
        layer_idx: Which layer of the model it is, from 0.
    """

    def __init__(self, config: AttentionConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: LayerCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        key_value_positions: Tensor | None = None,
    ) -> Tensor:
        """Attend, causally unless `key_value_states` are given.

        Args:
            x: [b, s, m] hidden states.
            positions: [s] or [b, s] integer positions of x, for RoPE; any values.
            cache: If given, the s tokens are appended to it and attend to all t tokens it holds.
            attention_mask: Bool, [b, t], True where a key is a real token, or [b, s, t], True where
                a query may see a key; causality applies besides. A query with nothing to attend
                to gets zeros from attention.
            key_value_states: [b, t', m]; keys and values come from here instead of x (cross
                attention) and nothing is masked causally. With a cache they are appended to it
                once; later steps pass an empty [b, 0, m] to attend to what is cached.
            key_value_positions: [t'] or [b, t'] positions of `key_value_states`; 0 to t'-1 if not
                given.

        Returns:
            [b, s, m].
        """

    @abstractmethod
    def residual_projections(self) -> list[nn.Linear]:
        """Return the projections that write into the residual stream, for depth-scaled init."""

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache:
        """Return an empty cache for this layer.

        Args:
            batch_size: Sequences decoded together.
            max_length: Tokens per sequence that fit.
            dtype: Of the stored elements; the module's own if not given.
            device: Where they live; the module's own if not given.
        """
        weight = next(self.parameters())
        return LayerCache(
            self.config.kv_cache_entries(),
            batch_size,
            max_length,
            dtype=dtype or weight.dtype,
            device=device or weight.device,
        )


def key_value_source(
    x: Tensor,
    positions: Tensor,
    key_value_states: Tensor | None,
    key_value_positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return where keys and values come from, [b, t', m], and its positions."""
    if key_value_states is None:
        return x, positions
    if key_value_positions is None:
        key_value_positions = torch.arange(key_value_states.shape[1], device=x.device)
    return key_value_states, key_value_positions


ConfigClass = TypeVar("ConfigClass", bound=type[AttentionConfig])

_REGISTRY: dict[str, type[AttentionConfig]] = {}


def register_attention(*names: str) -> Callable[[ConfigClass], ConfigClass]:
    """Make a configuration class known under one or more names, as `attention=<name>`."""

    def register(config_class: ConfigClass) -> ConfigClass:
        for name in names:
            if name in _REGISTRY:
                raise KeyError(f"attention '{name}' is registered twice")
            _REGISTRY[name] = config_class
        return config_class

    return register


def attention_config_class(name: str) -> type[AttentionConfig]:
    """Look up the configuration class of a registered name.

    Raises:
        ModelConfigError: If there is none; the message lists those there are. If a module cannot
            be imported.
    """
    # Every module of this package is imported, so that adding one is all a new variant takes.
    package = importlib.import_module("modeling.attention")
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"modeling.attention.{module.name}")
        except Exception as error:  # a module of the user's own, with a mistake in it
            raise ModelConfigError(_not_imported(module.name, error)) from error
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), _REGISTRY, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ModelConfigError(
            f"there is no attention '{name}'; {hint}available: {', '.join(sorted(_REGISTRY))}"
        )
    return _REGISTRY[name]


def _not_imported(module: str, error: Exception) -> str:
    """Say where a module stops being Python that runs."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).stem == module:
            line = frame.lineno
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    where = f", line {line}" if line else ""
    return f"modeling/attention/{module}.py{where}: {type(error).__name__}: {said}"


def attention_config(fields: Mapping[str, Any]) -> AttentionConfig:
    """Build the configuration that `fields` describe.

    Args:
        fields: `name`, a registered name, and the fields of its configuration class.

    Raises:
        ModelConfigError: For an unknown name or field, a missing field, or impossible values.
    """
    values = dict(fields)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ModelConfigError("model.attention.name is not set; choose one with attention=mha")
    config_class = attention_config_class(name)
    known = {field.name: field for field in dataclasses.fields(config_class)}
    types = get_type_hints(config_class)
    problems = []
    for key in values.keys() - known.keys():
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(known)}"
        problems.append(f"attention '{name}' has no key model.attention.{key}; {hint}")
    for key, field in known.items():
        if key not in values and field.default is dataclasses.MISSING:
            problems.append(f"attention '{name}' needs model.attention.{key}")
    for key in values.keys() & known.keys():
        problem = _type_problem(key, values[key], types[key])
        problems += [problem] if problem else []
    if problems:
        raise ModelConfigError(sorted(problems))
    config = config_class(**values)
    problems = config.problems_as(name)
    if problems:
        raise ModelConfigError(problems)
    return config


def _type_problem(key: str, value: Any, annotation: Any) -> str | None:
    """Return why a value from YAML, JSON or the command line is not of the field's type."""
    accepted = float | int if annotation is float else annotation
    # bool is a subclass of int, but `true` is no number of heads.
    if isinstance(value, accepted) and (annotation is bool or not isinstance(value, bool)):
        return None
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    kinds = str(getattr(annotation, "__name__", annotation)).split(" | ")
    wanted = " or ".join(names.get(kind, "null") for kind in kinds)
    return f"{key} ({value!r}) must be {wanted}; set model.attention.{key}"


def at_least(config: AttentionConfig, minimum: int, *keys: str) -> list[str]:
    """Return a problem for each named field that is below `minimum`."""
    return [
        f"{key} ({value}) must be at least {minimum}; set model.attention.{key}"
        for key in keys
        if (value := getattr(config, key)) < minimum
    ]
