"""Small attentions, models and comparisons that the tests of modeling share."""

import dataclasses
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling.attention import attention_config, attention_config_class
from modeling.config import GPTConfig
from modeling.contract import randomise, run_through_cache
from modeling.gpt import GPT
from modeling.kv_cache import LayerCache, StateSpec
from modeling.reference import oracle_of

__all__ = ["run_through_cache"]

M, H, B, S = 20, 4, 3, 7


def fields_of(name):
    """The small attention of a registered name, as a model's configuration has it."""
    example = attention_config_class(name).example(name)
    assert (example.hidden_size, example.num_attention_heads) == (M, H)
    fields = dataclasses.asdict(example)
    return {"name": name} | {key: fields[key] for key in fields.keys() - example.PLACED}


FIVE = {name: fields_of(name) for name in ("mha", "mqa", "gqa", "mla", "mla_no_rope")}
LATENT = FIVE["mla"]
CASES = FIVE | {
    "gqa_partial_rope_wide_value": FIVE["gqa"] | {"qk_rope_head_dim": 6, "v_head_dim": 10},
    "gqa_narrow_value_bias": FIVE["gqa"] | {"v_head_dim": 5, "attention_bias": True},
    "gqa_qk_norm": FIVE["gqa"] | {"use_qk_norm": True, "qk_rope_head_dim": 6},
    "mha_no_rope": FIVE["mha"] | {"qk_rope_head_dim": 0},
    "mla_query_latent": LATENT | {"q_lora_rank": 14},
    "mla_query_latent_bias": LATENT | {"q_lora_rank": 14, "attention_bias": True},
}


def decode_paths(fields):
    """Every way to read the cache that this attention has."""
    return attention_config_class(fields["name"]).DECODE_PATHS


def build_attention(fields, dtype=torch.float32, **changes):
    """An attention in evaluation mode whose weights no two heads or dimensions share."""
    return randomise(attention_config(fields | changes).build()).to(dtype).eval()


def normal(*shape, dtype=torch.float32, seed=0):
    """Standard normal numbers of their own seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def reference(config, weights, x, positions, **arguments):
    """What the oracle says, float64; positions may be [s] as well."""
    positions = torch.as_tensor(positions).expand(x.shape[:2])
    return oracle_of(config)(config, weights, x, positions, **arguments)


ENTRIES = {"key": (2, 3), "value": (2, 5)}
"""The tensors of a layer's cache."""


def token_entries(s, seed=0, batch=3):
    return {
        "key": normal(batch, 2, s, 3, seed=seed),
        "value": normal(batch, 2, s, 5, seed=seed + 1),
    }


def as_read(x, compute_dtype=torch.float32, stored_dtype=torch.int8):
    """What a cache that was given x [b, h, s, w] says it was."""
    b, h, s, w = x.shape
    cache = LayerCache(StateSpec(per_token={"key": (h, w)}), b, s, stored_dtype)
    return cache.update(key=x).read("key", compute_dtype)


# How many roundings of the largest value an attention of these sizes may be off by; measured on a
# CPU: at most 13.
ROUNDINGS = 64
# One rounding of bfloat16 is 0.8 %, and 64 of them would accept half of anything; measured: 1.3.
BFLOAT16_ROUNDINGS = 6


def assert_near(actual, expected, roundings=None):
    """Allow `roundings` machine epsilons of actual's dtype times the largest |expected|."""
    if roundings is None:
        roundings = BFLOAT16_ROUNDINGS if actual.dtype == torch.bfloat16 else ROUNDINGS
    atol = roundings * torch.finfo(actual.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)


def gpt_config(attention="mha", **changes):
    """A model of two layers; attentions without RoPE get learned positions."""
    fields = CASES[attention] if isinstance(attention, str) else attention
    values = {
        "vocab_size": 61,
        "max_position_embeddings": 40,
        "hidden_size": M,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "intermediate_size": 33,
        "initializer_range": 0.2,
        "position_embedding": "none" if fields.get("qk_rope_head_dim") else "learned",
        "attention": fields,
    }
    return GPTConfig(**(values | changes))


def build_gpt(attention="mha", seed=0, **changes):
    """That model, in evaluation mode."""
    torch.manual_seed(seed)
    return GPT(gpt_config(attention, **changes)).eval()


def random_tokens(*shape, vocab_size=61, seed=3):
    """Uniform tokens of their own seed."""
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made and that still live, now and at most.

    What an operation uses inside, and frees before it returns, is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self._each(self._remember, (args, kwargs), False)
        result = operation(*args, **(kwargs or {}))
        self._each(self._remember, result, True)
        return result

    @staticmethod
    def _each(do, values, is_new):
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                do(value.untyped_storage(), is_new)

    def _remember(self, storage, is_new):
        key, size = storage._cdata, storage.nbytes() if is_new else 0
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._forget, key, size)
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)

    def _forget(self, key, size):
        self._known.discard(key)
        self.now -= size
