"""The parts of an optimizer step that a training and the timed steps of a dry run share."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from modeling.gpt import GPT
from tracking.notices import Say
from training.machine.compiled import compiled
from training.machine.setup import Machine
from training.ranks.parallel import LossOf, Parallel

Batches = Iterator[tuple[Tensor, Tensor]]


def loss_of(model: GPT, z_loss_weight: float, say: Say, *, is_compiled: bool) -> LossOf:
    """Return the loss of tokens and targets that is trained on."""
    loss = functools.partial(model.loss, z_loss_weight=z_loss_weight)
    return compiled(loss, say) if is_compiled else loss


def gradients(
    parallel: Parallel,
    machine: Machine,
    batches: Batches,
    num_passes: int,
    waiting_for_data: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> float:
    """Add the gradients of a step's passes up.

    Args:
        parallel: Model and loss on this rank.
        machine: What it computes in.
        batches: Tokens and targets of each pass.
        num_passes: Passes of the step.
        waiting_for_data: Entered while the next batch is awaited.

    Returns:
        The loss of this rank's sequences, in nats per token.
    """
    loss = 0.0
    for index in range(num_passes):
        with waiting_for_data():
            tokens, targets = next(batches)
        with parallel.one_pass(is_last=index == num_passes - 1):
            with machine.autocast():
                # Passes are equally long, so the mean of their means is that of the step.
                pass_loss = parallel.loss_of(tokens, targets) / num_passes
            pass_loss.backward()
        loss += pass_loss.item()
    return loss


def update(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Change the weights by the gradients, and forget these."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
