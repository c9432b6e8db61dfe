"""What decoding allocates in addition to weights and cache."""

import pytest
import torch
from tiny import CASES, FIVE, LiveBytes, build_gpt, gpt_config, random_tokens

import modeling.attention.kernel
from modeling.accounting import kv_cache_bytes_per_token
from modeling.attention import attention_config
from modeling.generate import prefill

B, CONTEXT, CHUNK = 2, 512, 64


def step_peak(name, context, dtype, path, **changes):
    """Bytes of a step that fills the cache, at their peak."""
    fields = CASES[name] | {"decode_path": path}
    model = build_gpt(fields, max_position_embeddings=CONTEXT, **changes)
    cache = model.new_cache(B, context, dtype)
    prefill(model, random_tokens(B, context - 1), cache, chunk=CHUNK)
    with torch.no_grad(), LiveBytes() as live:
        model.next_logits(random_tokens(B, 1), cache=cache)
    assert cache.seen == context
    return live.peak


def test_live_bytes_are_those_of_tensors_that_live():
    before = torch.ones(1000)
    with LiveBytes() as live:
        first = before + 1
        views = first.view(10, 100)[3], before.view(10, 100), before.mul_(2)
        assert (live.now, live.peak) == (4000, 4000)
        second = torch.zeros(2000)
        del first, second
        assert (live.now, live.peak, live.largest) == (4000, 12_000, 8000)
        del views
        assert live.now == 0


@pytest.mark.parametrize("path", ["auto", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("name", FIVE)
def test_a_steps_memory_does_not_grow_with_the_context(name, dtype, path, monkeypatch):
    # So that even at context 64 there are several blocks.
    monkeypatch.setattr(modeling.attention.kernel, "BLOCK_ELEMENTS", 256)
    short, long = (step_peak(name, context, dtype, path) for context in (64, CONTEXT))
    assert 0 < short < 20_000
    assert long - short <= 1024
    # A copy of one layer's cache in float32 would be seen.
    copy = B * (CONTEXT - 64) * kv_cache_bytes_per_token(gpt_config(name), torch.float32) / 2
    assert copy > 20 * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize(
    "layers",
    [{}, {"sinks": True}, {"share": "pairs"}, {"full_every": 2, "full_rope": False}],
    ids=lambda layers: " ".join(layers) or "window",
)
@pytest.mark.parametrize("name", ["gqa", "mla"])
def test_a_step_copies_no_ring(name, layers, dtype, monkeypatch):
    monkeypatch.setattr(modeling.attention.kernel, "BLOCK_ELEMENTS", 256)
    # Both have come round, and the newest token is in the middle.
    short, long = (
        step_peak(name, CONTEXT - 9, dtype, "auto", layers={"window": window} | layers)
        for window in (32, 320)
    )
    assert 0 < short < 20_000
    assert long - short <= 1024
    assert B * (320 - 32) * kv_cache_bytes_per_token(gpt_config(name), torch.float32) / 2 > 20_000


def prompt_bound(name, chunk):
    """Bytes that a chunk may take at the end of the prompt, whatever the number of layers."""
    config = gpt_config(name)
    attention = attention_config(config.attention)
    h, v = attention.num_attention_heads, attention.v_head_dim
    latent = name.startswith("mla")
    d = attention.qk_rope_head_dim + attention.qk_nope_head_dim if latent else attention.head_dim
    mask = 2 * chunk * CONTEXT  # as bool and as float
    activations = 4 * B * chunk * (config.hidden_size + h * (d + v))
    # Keys and values of all heads out of the latents: as they come, and as the kernel takes them.
    expanded = B * CONTEXT * h * (d + v + 2 * max(d, v)) if latent else 0
    # Values wider than keys are not for the fused kernel: scores and weights exist.
    unfused = 2 * B * h * chunk * CONTEXT if v > d else 0
    return 4 * (mask + activations + expanded + unfused)


@pytest.mark.parametrize("name", FIVE)
def test_a_prompt_in_chunks_takes_a_chunks_memory(name):
    peaks = {}
    for layers in (2, 4):
        model = build_gpt(name, max_position_embeddings=CONTEXT, num_hidden_layers=layers)
        for chunk in (CHUNK, CONTEXT):
            cache = model.new_cache(B, CONTEXT)
            with LiveBytes() as live:
                prefill(model, random_tokens(B, CONTEXT), cache, chunk=chunk)
            peaks[layers, chunk] = live.peak
    assert peaks[2, CHUNK] <= prompt_bound(name, CHUNK)
    assert peaks[2, CHUNK] < 0.7 * peaks[2, CONTEXT]
    for chunk in (CHUNK, CONTEXT):
        assert peaks[4, chunk] <= 1.02 * peaks[2, chunk]
