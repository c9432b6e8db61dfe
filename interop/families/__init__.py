"""One module for each family of transformers' classes: its config.json and weights, both ways."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from modeling.config import GPTConfig


class Family(Protocol):
    """What each of the modules has.

    Args of its functions:
        config: kvlab's model.
        attentions: One a layer.
        weights: A state dict.
        read: config.json, as transformers reads it.
    """

    def problems(self, config: GPTConfig, attentions: Sequence[Any]) -> list[str]:
        """Return why no class of the family expresses a model, each with a way out."""
        ...

    def write(
        self, config: GPTConfig, attentions: Sequence[Any], weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return config.json and the class's weights of a model without problems."""
        ...

    def read_config(self, read: Any, weights: Mapping[str, Tensor]) -> GPTConfig:
        """Return the model that a configuration describes.

        Raises:
            InteropError: Naming the key or the weights that kvlab's modules cannot follow.
        """
        ...

    def read_weights(
        self, read: Any, config: GPTConfig, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return kvlab's state dict, from names and shapes that were checked.

        Raises:
            InteropError: Naming weights of a part that kvlab does not have and that do something.
        """
        ...
