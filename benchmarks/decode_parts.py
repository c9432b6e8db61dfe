"""What a step of a kvlab model is made of, each part alone, and how fast the machine could be."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.accounting import kv_cache_bytes
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.kernel import attend_held
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import Held, KVCache


def linear_weights(model: GPT) -> list[Tensor]:
    """Return the weights that a step multiplies with: the blocks', and the output projection.

    A latent attention's `kv_b_proj` is among them: decoding absorbs it into two batched products
    with the same number of weights.
    """
    layers = (module for module in model.layers.modules() if isinstance(module, nn.Linear))
    return [*(module.weight for module in layers), model.output_weight]


def linear_alone(model: GPT, batch: int) -> Callable[[], None]:
    """Return a function that multiplies `batch` vectors with each of a model's weights."""
    weights = linear_weights(model)
    inputs = {w.shape[1]: w.new_empty(batch, w.shape[1]).normal_() for w in weights}

    def run() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return run


def attention_alone(model: GPT, cache: KVCache) -> Callable[[], None]:
    """Return a function that reads every layer's cache, as a step's attention does.

    One query per sequence, already in the space of what is cached: a latent attention's products
    that take it there and back are left out.
    """
    h, fields = model.config.num_attention_heads, model.config.attention
    widths = ("qk_nope_head_dim", "qk_rope_head_dim") if "kv_lora_rank" in fields else ("head_dim",)
    scale = sum(fields[width] for width in widths) ** -0.5
    calls = []
    for layer in cache.stored:
        key = next(iter(layer.tensors.values()))
        query = key.new_empty(key.shape[0], h, 1, key.shape[-1]).normal_()
        held = layer.view()
        calls.append((query, held, partial(read_block, held), key.shape[1]))

    def run() -> None:
        for query, held, read, g in calls:
            attend_held(
                *(query, held, read, g),
                path="auto",
                causal=True,
                scale=scale,
                fold=g < h,
                forward_pass=ForwardPass(),
            )

    return run


def read_block(held: Held, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return keys and values of tokens [start, end); of a latent both are the same."""
    entries = [held.read(name, dtype, start, end) for name in held.entries]
    return entries[0], entries[-1]


def attention_flops(config: GPTConfig, batch: int, context: int) -> float:
    """Return the FLOPs of scores and sums over the cache, of one token in each sequence.

    For a latent attention those of reading it absorbed: h (c + r) for the scores of a token, and
    h c for its share of the sum.
    """
    attention = config.attention
    if "kv_lora_rank" in attention:
        widths = 2 * attention["kv_lora_rank"] + attention["qk_rope_head_dim"]
    else:
        widths = attention["head_dim"] + attention["v_head_dim"]
    per_key = 2 * config.num_attention_heads * widths
    return float(config.num_hidden_layers * per_key * batch * context)


def cache_bytes(config: GPTConfig, batch: int, context: int, dtype: torch.dtype) -> int:
    """Return the bytes of the cache that a step has to read."""
    return batch * kv_cache_bytes(config, context, dtype)
