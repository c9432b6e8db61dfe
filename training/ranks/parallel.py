"""One step of a model on one rank or on several: forward, gradients, their norm.

DDP keeps the whole model on every rank and averages the gradients. FSDP2 keeps a part of every
parameter, gradient and optimizer state on each rank and gathers a block's weights while it is used.
With either, the loss of a step is the mean over all tokens of all ranks.
"""

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from modeling.gpt import GPT
from training.ranks.world import World

LossOf = Callable[[Tensor, Tensor], Tensor]


def build_model(make: Callable[[], GPT], world: World, *, sharded: bool) -> GPT:
    """Build a model on this rank's device, with its parameters sharded over the ranks if asked.

    Args:
        make: Builds it on the CPU, the same on every rank.
        world: The ranks.
        sharded: Shard by FSDP2: each block is gathered when it is needed, and so are the
            embeddings and the last norm.
    """
    if not sharded:
        return make().to(world.device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # No MixedPrecisionPolicy: the weights are gathered in float32 and autocast does the rest, as
    # without sharding. That costs traffic, and buys the same numbers, and validation in float32.
    mesh = init_device_mesh(world.device.type, (world.size,))
    model = make()  # fully_shard moves what it shards, so the device never holds all of it
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # They use the weights as `forward` does.
    for name in ("loss", "token_nll", "hidden_states", "next_logits"):
        register_fsdp_forward_method(model, name)
    return model


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this rank holds; any other tensor as it is."""
    sharded: Any = tensor
    return sharded.to_local() if hasattr(sharded, "to_local") else tensor


class _Loss(nn.Module):
    """The loss as a module's `forward`, which is what DDP watches."""

    def __init__(self, model: GPT, loss_of: LossOf) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self._loss_of(tokens, targets)


class Parallel:
    """How the ranks of a world make the gradients of one model.

    Args:
        model: From `build_model`, after a checkpoint was put back: DDP sends rank 0's weights to
            all.
        loss_of: Its loss of [b, s] tokens and targets, of this rank's sequences.
        world: The ranks.
        sharded: Whether its parameters are sharded.
    """

    def __init__(self, model: GPT, loss_of: LossOf, world: World, *, sharded: bool) -> None:
        self._model = model
        self._world = world
        self._ddp: Any = None
        self.loss_of = loss_of
        if world.size > 1 and not sharded:
            from torch.nn.parallel import DistributedDataParallel

            self.loss_of = self._ddp = DistributedDataParallel(
                _Loss(model, loss_of),
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def one_pass(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Surround forward and backward of one pass; gradients travel in a step's last one only.

        FSDP2 reduces those of every pass: to wait, each rank would have to hold them all.
        """
        if self._ddp is None or is_last:
            return contextlib.nullcontext()
        return self._ddp.no_sync()

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients of all ranks down to a norm, and return what it was before."""
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)
        # Of sharded gradients each rank knows its part.
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    @torch.no_grad()
    def broken_parameter(self) -> str | None:
        """Name the first parameter that is infinite or NaN on any rank, the same on all, or None.

        Sums are enough, which carry on what is not finite: one pass over the weights, at any step.
        """
        parameters = list(self._model.named_parameters())
        parts = [local_part(parameter) for _, parameter in parameters]
        first = math.inf
        if not torch.stack([part.sum() for part in parts]).sum().isfinite():
            # A sum of finite numbers may overflow.
            first = next((n for n, p in enumerate(parts) if not p.isfinite().all()), math.inf)
        first = self._world.least(first)
        return None if math.isinf(first) else parameters[int(first)][0]
