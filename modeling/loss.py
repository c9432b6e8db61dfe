"""Cross-entropy of a linear output layer without all its logits in memory at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ELEMENTS = 2**22
"""Logits held at a time: 16 MiB in float32, 1024 rows of a vocabulary of 4096."""


def _row_chunks(hidden: Tensor, vocab_size: int) -> range:
    return range(0, hidden.shape[0], max(1, _CHUNK_ELEMENTS // vocab_size))


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy; the gradients are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss_weight: float
    ) -> Tensor:
        device = hidden.device.type
        compute_dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        wide = torch.promote_types(compute_dtype, torch.float32)
        chunks = _row_chunks(hidden, weight.shape[0])
        num_rows = hidden.shape[0]
        with torch.autocast(device, enabled=False):
            matrix = weight.to(compute_dtype)
            total = torch.zeros((), dtype=torch.float64, device=hidden.device)
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight)
            for start in chunks:
                rows = slice(start, start + chunks.step)
                chunk = hidden[rows].to(compute_dtype)
                logits = (chunk @ matrix.t()).to(wide)  # [rows, n]
                index = targets[rows].unsqueeze(1)
                target_logits = logits.gather(1, index)
                highest = logits.amax(1, keepdim=True)
                # From here on in place: on a CPU each pass over [rows, n] is felt.
                exponentials = logits.sub_(highest).exp_()
                normaliser = exponentials.sum(1, keepdim=True)
                log_normaliser = normaliser.log() + highest
                total += (log_normaliser - target_logits).sum(dtype=torch.float64)
                # d loss / d logits = (softmax (1 + 2 w log Z) - one-hot) / rows
                factor = 1 + 2 * z_loss_weight * log_normaliser if z_loss_weight else 1
                grad_logits = exponentials.mul_(factor / (normaliser * num_rows))
                # Not scatter_add_, which CUDA refuses to make deterministic.
                grad_targets = grad_logits.gather(1, index) - 1 / num_rows
                grad_logits = grad_logits.scatter_(1, index, grad_targets).to(compute_dtype)
                grad_hidden[rows] = (grad_logits @ matrix).to(hidden.dtype)
                if compute_dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad_logits.t(), chunk)
                else:
                    grad_weight += grad_logits.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        return (total / num_rows).to(wide)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss_weight: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of logits = hidden @ weight.T, in nats.

    Args:
        hidden: [rows, m].
        weight: [n, m].
        targets: [rows] int64 in [0, n).
        z_loss_weight: w of the z-loss, w times the mean of (log Z)^2, Z the softmax's normaliser.
            Only its gradient is added: the value stays the cross-entropy, so that runs with and
            without it can be compared.

    Returns:
        Scalar, float32 or wider; softmax in float32 or wider, sums in float64.

    Source:
        z-loss: PaLM (arXiv 2204.02311), section 5.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss_weight)


@torch.no_grad()
def linear_token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return each target's negative log-likelihood under logits = hidden @ weight.T.

    Args:
        hidden: [rows, m].
        weight: [n, m].
        targets: [rows] int64 in [0, n).

    Returns:
        [rows] nats, float32 or wider.
    """
    chunks = _row_chunks(hidden, weight.shape[0])
    parts = []
    for start in chunks:
        rows = slice(start, start + chunks.step)
        logits = F.linear(hidden[rows], weight)
        wide = torch.promote_types(logits.dtype, torch.float32)
        parts.append(F.cross_entropy(logits.to(wide), targets[rows], reduction="none"))
    return torch.cat(parts)
