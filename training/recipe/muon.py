"""Muon: momentum, orthogonalised, for the matrices of the blocks."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Muon(torch.optim.Muon):
    """torch.optim.Muon with a dtype, batches and shards of its own.

    PyTorch's always iterates in bfloat16, which turns a difference of 1e-7 between two gradients
    into one of 1e-3 between two updates; here `dtype` decides. And it takes one matrix after the
    other; here all of one shape go together, which keeps a GPU busy. Settings, state and formulas
    are PyTorch's.
    Matrices that FSDP2 shards are gathered one shape at a time.

    Args:
        params: Matrices only, or groups of them.
        lr: Learning rate. The step's size is adjusted to that of AdamW (root mean square 0.2), so
            that one learning rate and one weight decay serve both.
        momentum: Of the running mean of gradients; Nesterov's form is used.
        dtype: What float32 matrices are orthogonalised in.

    Raises:
        ValueError: If a parameter is not a matrix.

    Source:
        Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the adjustment: Liu et al. 2025
        (arXiv 2502.16982), equation 4.
    """

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = torch.stack([_whole(self._direction(p, group)) for p in parameters])
                updates = orthogonalised(
                    directions,
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                    self._dtype,
                )
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(_part_of(update, parameter), alpha=-size)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Take the gradient into the momentum and return what is to be orthogonalised."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(buffer, group["momentum"])


def _whole(matrix: Tensor) -> Tensor:
    """Gather a matrix that is sharded over ranks; every rank then orthogonalises all of it."""
    return matrix.full_tensor() if hasattr(matrix, "full_tensor") else matrix


def _part_of(update: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a whole update if the parameter is sharded."""
    if not hasattr(parameter, "full_tensor"):
        return update
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = parameter
    # Every rank has the same whole: without a source nothing travels.
    return distribute_tensor(update, sharded.device_mesh, sharded.placements, src_data_rank=None)


def orthogonalised(
    matrices: Tensor,
    coefficients: tuple[float, float, float],
    num_steps: int,
    eps: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Bring the singular values of matrices near 1 by Newton-Schulz iterations.

    Args:
        matrices: [n, rows, columns] float32 (or float64, which stays).
        coefficients: a, b, c of X <- a X + (b G + c G^2) X with G = X X^T.
        num_steps: Iterations.
        eps: The least norm that a matrix is divided by.
        dtype: What float32 is computed in.

    Returns:
        [n, rows, columns] in the dtype of `matrices`.

    Source:
        As in torch.optim.Muon.
    """
    a, b, c = coefficients
    x = matrices.to(dtype) if matrices.dtype == torch.float32 else matrices
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:  # G is the smaller of the two products
        x = x.transpose(1, 2)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.transpose(1, 2) if is_tall else x).to(matrices.dtype)
