"""Promises about what attention costs: bytes, parameters, FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling.attention import AttentionConfig, SoftmaxAttentionConfig
from modeling.contract.common import BATCH, Finding, equal
from modeling.kv_cache import KVCache

_FLOPS_CONTEXT = 48


@torch.no_grad()
def cache_bytes(config: AttentionConfig) -> Iterator[Finding]:
    """Cache bytes are the closed form, at two contexts."""
    hint = "state"
    for context in (11, 29):
        module = config.build().eval()
        cache = module.new_cache(BATCH, context)
        x = torch.randn(BATCH, context, config.hidden_size)
        module(x[:, :-1], torch.arange(context - 1), cache)
        module(x[:, -1:], torch.tensor([context - 1]), cache)
        closed = BATCH * config.state().bytes(context, torch.float32)
        what = f"bytes of {BATCH} x {context} tokens in float32: "
        yield equal(KVCache([cache]).num_bytes(), closed, what, hint)
        if cache.seen != context:
            held = f"{cache.seen} tokens are cached after {context}"
            yield Finding(False, held, "what forward appends to the cache")


def parameters(config: AttentionConfig) -> Iterator[Finding]:
    """Parameters are the closed form."""
    real = sum(parameter.numel() for parameter in config.build().parameters())
    yield equal(real, config.num_parameters(), "", "num_parameters")


@torch.no_grad()
def flops(config: AttentionConfig) -> Iterator[Finding]:
    """FLOPs are the closed form, within 2 %."""
    if isinstance(config, SoftmaxAttentionConfig):
        # Values that are narrower than keys are padded to their width for the fused kernels, which
        # is no work of the model: it is counted with values as wide.
        key = getattr(config, "head_dim", 0) or (
            getattr(config, "qk_nope_head_dim", 0) + config.qk_rope_head_dim
        )
        config = dataclasses.replace(config, v_head_dim=max(key, config.v_head_dim))
    module, context = config.build().eval(), _FLOPS_CONTEXT
    x = torch.randn(1, context, config.hidden_size)
    counter = FlopCounterMode(display=False)
    # Every product of the unfused kernel is counted, those of hidden keys too.
    with sdpa_kernel(SDPBackend.MATH), counter:
        module(x, torch.arange(context))
    counted = counter.get_total_flops() / context
    # Causal attention sees (t + 1) / 2 of t keys: all are seen at context 2 t - 1.
    closed = config.flops_per_token(2 * context - 1)
    measured = f"per token: counted {counted:,.0f}, closed form {closed:,.0f}"
    passed = abs(closed - counted) <= 0.02 * counted
    yield Finding(passed, measured, "flops_per_token: a multiply-add is two")
