"""Which oracle belongs to which attention."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from modeling.attention import AttentionConfig

Oracle = Callable[..., Tensor]
"""(config, weights, x, positions, *, attention_mask, key_value_states, key_value_positions,
producer) -> [b, s, m] float64; see `grouped_query_reference`."""
_Oracle = TypeVar("_Oracle", bound=Oracle)

_REGISTRY: dict[type[AttentionConfig], Oracle] = {}


def register_oracle(config_class: type[AttentionConfig]) -> Callable[[_Oracle], _Oracle]:
    """Make a function known as the oracle of a configuration class."""

    def register(oracle: _Oracle) -> _Oracle:
        _REGISTRY[config_class] = oracle
        return oracle

    return register


def oracle_of(config: AttentionConfig) -> Oracle | None:
    """Return the oracle of an attention; None if there is none."""
    package = importlib.import_module("modeling.reference")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"modeling.reference.{module.name}")
    return _REGISTRY.get(type(config))
