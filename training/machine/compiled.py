"""torch.compile, and training without it where it fails."""

from collections.abc import Callable

import torch
from torch import Tensor

from tracking.failures import is_out_of_memory
from tracking.notices import Say


def compiled(
    loss_of: Callable[[Tensor, Tensor], Tensor], say: Say
) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a loss; where its first call fails (no compiler, say), say so and do without."""
    fast = torch.compile(loss_of)
    works: bool | None = None

    def call(tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal works
        if works is None:
            try:
                loss = fast(tokens, targets)
                works = True
                return loss
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                works = False
                say(f"torch.compile failed ({type(error).__name__}); training continues without it")
        return fast(tokens, targets) if works else loss_of(tokens, targets)

    return call
