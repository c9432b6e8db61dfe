"""Promises about what attention costs: bytes, parameters, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling.attention import AttentionConfig, SoftmaxAttentionConfig
from modeling.contract.common import BATCH, Finding, equal
from modeling.contract.placements import ReadingConfig, changed
from modeling.kv_cache import KVCache

_FLOPS_CONTEXT = 48


@torch.no_grad()
def cache_bytes(config: AttentionConfig) -> Iterator[Finding]:
    """Cache bytes are the closed form, at every context and in every dtype."""
    module, window = config.build().eval(), config.state().window or 4
    for context in sorted({1, max(1, window - 1), window, window + 1, 4 * window, 29}):
        x, positions = torch.randn(BATCH, context, config.hidden_size), torch.arange(context)
        for dtype in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
            cache = module.new_cache(BATCH, context, dtype)
            module(x[:, :-1], positions[:-1], cache)
            module(x[:, -1:], positions[-1:], cache)
            closed = BATCH * config.state().bytes(context, dtype)
            name = str(dtype).removeprefix("torch.")
            found = equal(
                KVCache([cache]).num_bytes(),
                closed,
                f"bytes of {BATCH} x {context} tokens in {name}: ",
                "state",
            )
            if not found.passed or (context == 29 and dtype == torch.float32):
                yield found
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
    context, config = _FLOPS_CONTEXT, _with_wide_values(config)
    window = config.state().window
    if window is not None:
        # What a window saves is counted key by key, and the rest without it: products of hidden
        # keys in its blocks are no work of the model.
        closed = config.flops_per_token(context)
        config = changed(config, sliding_window=None, attention_sinks=False)
        seen = sum(min(query + 1, window) for query in range(context)) / context
        expected = config.flops_per_token(2 * seen - 1)  # type: ignore[arg-type]
        measured = f"per token: {seen:.4g} keys are seen, closed form {closed:,.0f}"
        passed = abs(closed - expected) <= 1e-9 * expected
        yield Finding(passed, f"{measured}, expected {expected:,.0f}", "visible_keys")
    module = config.build().eval()
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


def _with_wide_values(config: AttentionConfig) -> AttentionConfig:
    """Return it with values no narrower than keys.

    Narrower ones are padded for the fused kernels, which is no work of the model.
    """
    layer = config.reader if isinstance(config, ReadingConfig) else config
    if not isinstance(layer, SoftmaxAttentionConfig):
        return config
    key = getattr(layer, "head_dim", 0) or (
        getattr(layer, "qk_nope_head_dim", 0) + layer.qk_rope_head_dim
    )
    return changed(config, v_head_dim=max(key, layer.v_head_dim))
