"""What the promises of attention are checked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling.attention import Attention, AttentionConfig, ForwardPass
from modeling.kv_cache import LayerCache

BATCH, LENGTH = 3, 7
# Machine epsilons of the largest value that attentions of such sizes may be off by; measured: 13.
_ROUNDINGS = 64
FELT = 1e-6
"""What changes an output changes it by more than this."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        passed: Whether the promise is kept.
        measured: What was measured, and what was expected or allowed.
        hint: Where to look if it is not kept.
        share: What was measured, as a share of what is allowed; None where that makes no sense.
        made: Whether there was something to check.
    """

    passed: bool
    measured: str
    hint: str
    share: float | None = None
    made: bool = True


def randomise(module: nn.Module, std: float = 0.5, seed: int = 1) -> nn.Module:
    """Give every parameter large values without any symmetry; norms stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(std * noise + std / 10)
    return module


def run_through_cache(
    module: Attention,
    x: Tensor,
    positions: Tensor,
    chunks: Sequence[int],
    attention_mask: Tensor | None = None,
    cache: LayerCache | None = None,
    document_start: Tensor | None = None,
) -> Tensor:
    """Feed x [b, s, m] to an attention in chunks, through one cache.

    Args:
        module: The attention.
        x: [b, s, m].
        positions: [s] or [b, s].
        chunks: Tokens of each.
        attention_mask: As in `Attention.forward`, of all tokens.
        cache: A new one if not given.
        document_start: As in `ForwardPass`, [b, s].
    """
    assert sum(chunks) == x.shape[1]
    cache = cache or module.new_cache(x.shape[0], x.shape[1])
    outputs, start = [], 0
    for size in chunks:
        end = start + size
        mask = attention_mask
        if mask is not None:
            mask = mask[:, :end] if mask.dim() == 2 else mask[:, start:end, :end]
        piece, positions_now = x[:, start:end], positions[..., start:end]
        if document_start is None:
            outputs.append(module(piece, positions_now, cache, attention_mask=mask))
        else:
            forward_pass = ForwardPass(mask, document_start[:, start:end])
            outputs.append(module(piece, positions_now, cache, forward_pass=forward_pass))
        start = end
    return torch.cat(outputs, dim=1)


def left_padding(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return positions and padding mask, [b, s], of rows that end together."""
    index = torch.arange(max(lengths))
    start = max(lengths) - torch.tensor(lengths)[:, None]
    return (index - start).clamp(min=0), index >= start


def build(config: AttentionConfig) -> Attention:
    """Build an attention with random weights, in float64 and evaluation mode."""
    module = config.build()
    randomise(module)
    return module.double().eval()


def states(config: AttentionConfig, seed: int = 0, batch: int = BATCH) -> Tensor:
    """Return hidden states [batch, LENGTH, m] of their own seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, LENGTH, config.hidden_size)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def near(found: Tensor, expected: Tensor, what: str, hint: str) -> Finding:
    """Compare two tensors that may differ by rounding only."""
    if found.shape != expected.shape:
        return Finding(False, f"shape {[*found.shape]}, expected {[*expected.shape]}", hint)
    gap = float((found - expected).abs().max())
    allowed = _ROUNDINGS * torch.finfo(found.dtype).eps * float(expected.abs().max())
    measured = f"{what}: off by {gap:.1e}, allowed {allowed:.1e}"
    return Finding(gap <= allowed, measured, hint, gap / (allowed or 1))


def equal(found: float, expected: float, what: str, hint: str) -> Finding:
    """Compare a measured number with its closed form."""
    measured = f"{what}measured {found:,}, closed form {expected:,}"
    return Finding(found == expected, measured, hint)
