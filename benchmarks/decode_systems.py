"""The systems that benchmarks/decode.py compares: their models, their caches, their step.

Every peer whose function is kvlab's holds the very weights of the kvlab model, most of them as the
same tensors in memory, and is called as its own `generate` calls it. Caches are the frameworks'
own; at a long context they are filled with random numbers, since a prefill would take minutes.
"""

import contextlib
import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.common import SIZES, composed_config
from benchmarks.peers import deepseek_v3_config, litgpt_config, llama_config, query_latent_width
from modeling.accounting import match_to_mha
from modeling.config import GPTConfig
from modeling.gpt import GPT
from modeling.kv_cache import KVCache

if TYPE_CHECKING:
    from litgpt import GPT as LitGPT
    from transformers import PreTrainedModel

PREALLOCATED, DYNAMIC, STATIC, LITGPT = "preallocated", "dynamic", "static", "litgpt"


def decoding_config(size: str, attention: str, longest: int) -> GPTConfig:
    """Compose a model as `train_model.py` does, for texts of up to `longest` tokens.

    Its MLP is matched to MHA's parameters at the size's own context, so that what is measured at
    one context does not depend on the others that were asked for (learned positions of a long
    context would take their parameters out of the MLP).
    """
    config = composed_config(size, attention, SIZES[size].context)
    model = match_to_mha(config.model) if config.match == "params" else config.model
    return dataclasses.replace(
        model, max_position_embeddings=max(longest, model.max_position_embeddings)
    )


def kvlab_model(config: GPTConfig, device: str, dtype: torch.dtype, seed: int = 0) -> GPT:
    """Build a model whose weights make mistakes in copying them visible.

    The scale of the initial weights is that of training times five: with those, attention is all
    but uniform, and a mistaken rotation or order of heads hardly changes the logits. Norms begin
    at 1, which would hide a norm that was not copied.
    """
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(config, initializer_range=5 * config.initializer_range))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def fill(tensor: Tensor, block: int = 1 << 20) -> None:
    """Fill a contiguous tensor with random numbers: a block of them, repeated."""
    flat = tensor.view(-1)
    done = min(block, flat.numel())
    flat[:done].normal_()
    while done < flat.numel():
        more = min(done, flat.numel() - done)
        flat[done : done + more] = flat[:more]
        done += more


class Decoder(ABC):
    """A model and its cache: what a timed step calls."""

    @abstractmethod
    def start(self, batch: int, context: int, room: int) -> None:
        """Allocate the cache of `batch` sequences, filled with `context` tokens of random numbers.

        Args:
            batch: Sequences.
            context: Tokens of each that the cache begins with; with 0 it is empty.
            room: Tokens that can be added.
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens [b, s] to the sequences and return their logits, [b, s, n]."""

    @abstractmethod
    def rewind(self) -> None:
        """Put the cache back to the `context` tokens that it began with."""

    @abstractmethod
    def stop(self) -> None:
        """Free the cache."""


class KvlabDecoder(Decoder):
    """A kvlab model; its cache is preallocated."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.cache: KVCache | None = None
        self._context = 0

    def start(self, batch: int, context: int, room: int) -> None:
        """See `Decoder.start`."""
        self.cache = self.model.new_cache(batch, context + room)
        self._context = context
        if context == 0:
            return
        for layer in self.cache.stored:
            for tensor in layer.tensors.values():
                fill(tensor)
            layer.seen = context

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        return self.model(tokens, cache=self.cache)

    def rewind(self) -> None:
        """See `Decoder.rewind`."""
        assert self.cache is not None
        self.cache.truncate(self._context)

    def stop(self) -> None:
        """See `Decoder.stop`."""
        self.cache = None


# transformers 5.23, read in generation/utils.py and cache_utils.py: generate makes a
# DynamicCache(config=...) by default, and calls the model with input_ids, position_ids
# [b, s] and an attention_mask [b, t] of ones. What it does around the call (preparing these,
# stopping criteria, choosing the token) is left out, in its favour.
class TransformersDecoder(Decoder):
    """A model of transformers.

    Args:
        model: Any causal language model.
        widths: Those of the two tensors of a layer's cache: ((heads, width), (heads, width)).
        static: A StaticCache, of just the size that is needed, instead of a DynamicCache.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        widths: tuple[tuple[int, int], tuple[int, int]],
        static: bool = False,
    ) -> None:
        self.model = model
        self._widths = widths
        self._static = static
        self._cache: Any = None
        self._context = self._length = 0

    def start(self, batch: int, context: int, room: int) -> None:
        """See `Decoder.start`."""
        from transformers import DynamicCache, StaticCache

        weight = next(self.model.parameters())
        self._context = self._length = context
        longest = context + room
        self._positions = torch.arange(longest, device=weight.device).repeat(batch, 1)
        self._ones = torch.ones(batch, longest, dtype=torch.long, device=weight.device)
        if self._static:
            self._cache = StaticCache(config=self.model.config, max_cache_len=longest)
        else:
            self._cache = DynamicCache(config=self.model.config)
        if context == 0:
            return
        for idx, layer in enumerate(self._cache.layers):
            length = 0 if self._static else context
            new = [weight.new_empty(batch, heads, length, w) for heads, w in self._widths]
            for tensor in new:
                fill(tensor)
            self._cache.update(*new, idx)
            if self._static:
                fill(layer.keys)
                fill(layer.values)
                layer.cumulative_length.fill_(context)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        first, end = self._length, self._length + tokens.shape[1]
        self._length = end
        return self.model(
            input_ids=tokens,
            position_ids=self._positions[:, first:end],
            attention_mask=self._ones[:, :end],
            past_key_values=self._cache,
            use_cache=True,
        ).logits

    def rewind(self) -> None:
        """See `Decoder.rewind`."""
        assert self._cache is not None
        self._length = self._context
        for layer in self._cache.layers:
            if self._static:
                layer.cumulative_length.fill_(self._context)
            else:
                # Cache.crop returns views with gaps, which the next step would read more slowly
                # than what a generation has.
                layer.keys = layer.keys[:, :, : self._context].clone()
                layer.values = layer.values[:, :, : self._context].clone()

    def stop(self) -> None:
        """See `Decoder.stop`."""
        self._cache = None


# litgpt 0.5.13, read in generate/base.py: model.max_seq_length is set to what will be generated,
# then set_kv_cache; generate_fn passes input_pos and input_pos_maxp1, so that only what is filled
# is read (batched_generate_fn leaves the latter out and reads all; it gets the faster way).
class LitGPTDecoder(Decoder):
    """The GPT of litgpt; its cache is preallocated buffers of the model."""

    def __init__(self, model: "LitGPT") -> None:
        self.model = model
        self._context = self._length = 0

    def start(self, batch: int, context: int, room: int) -> None:
        """See `Decoder.start`."""
        weight = self.model.lm_head.weight
        self._context = self._length = context
        self.model.max_seq_length = context + room
        # Its MLA prints a warning for every layer.
        with contextlib.redirect_stdout(io.StringIO()):
            self.model.set_kv_cache(batch, device=weight.device, dtype=weight.dtype)
        self._positions = torch.arange(context + room, device=weight.device)
        if context:
            for block in self.model.transformer.h:
                fill(block.attn.kv_cache.k)
                fill(block.attn.kv_cache.v)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        first, end = self._length, self._length + tokens.shape[1]
        self._length = end
        return self.model(tokens, self._positions[first:end], input_pos_maxp1=end)

    def rewind(self) -> None:
        """See `Decoder.rewind`."""
        self._length = self._context

    def stop(self) -> None:
        """See `Decoder.stop`."""
        self.model.clear_kv_cache()


def kvlab(model: GPT) -> Decoder:
    """The kvlab model itself."""
    return KvlabDecoder(model)


def _transformers(model: GPT, peer: Any, widths: Any, static: bool = False) -> Decoder:
    """Give a model of transformers the weights of a kvlab model, whose names are the same."""
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    else:
        weights["lm_head.weight"] = weights.pop("model.lm_head.weight")
    peer.load_state_dict(weights, strict=True, assign=True)
    # What is no weight, such as RoPE's frequencies, stays float32.
    return TransformersDecoder(_ready(peer, model), widths, static)


def _ready(peer: Any, model: GPT) -> Any:
    """Put a peer where the kvlab model is, to decode."""
    return peer.to(device=model.output_weight.device).eval().requires_grad_(False)


def transformers_llama(model: GPT, *, static: bool = False) -> Decoder:
    """Llama of transformers, for MHA, GQA and MQA."""
    from transformers import LlamaForCausalLM

    fields = dataclasses.asdict(model.config)
    attention = fields["attention"]
    heads = attention["num_key_value_heads"]
    widths = ((heads, attention["head_dim"]), (heads, attention["v_head_dim"]))
    return _transformers(model, LlamaForCausalLM(llama_config(fields)), widths, static)


def transformers_llama_static(model: GPT) -> Decoder:
    """The same with a StaticCache."""
    return transformers_llama(model, static=True)


def transformers_deepseek_v3(model: GPT) -> Decoder:
    """DeepSeek-V3 of transformers, every layer dense: it caches latent and shared key."""
    from transformers import DeepseekV3ForCausalLM

    fields = dataclasses.asdict(model.config)
    attention = fields["attention"]
    widths = ((1, attention["kv_lora_rank"]), (1, attention["qk_rope_head_dim"]))
    return _transformers(model, DeepseekV3ForCausalLM(deepseek_v3_config(fields)), widths)


def litgpt(model: GPT) -> Decoder:
    """The GPT of litgpt with the weights of a kvlab model: MHA, GQA and MQA."""
    peer = _litgpt_model(model, dataclasses.asdict(model.config))
    peer.load_state_dict(litgpt_weights(model), strict=True, assign=True)
    return LitGPTDecoder(_ready(peer, model))


def litgpt_latent(model: GPT) -> Decoder:
    """The MLA of litgpt, which always compresses its queries: with weights of its own."""
    fields = dataclasses.asdict(model.config)
    fields["attention"] |= {"q_lora_rank": query_latent_width(fields)}
    peer = _litgpt_model(model, fields)
    if model.config.tie_word_embeddings:
        peer.transformer.wte.weight = peer.lm_head.weight
    return LitGPTDecoder(_ready(peer.to(model.output_weight.dtype), model))


def _litgpt_model(model: GPT, fields: dict[str, Any]) -> Any:
    from litgpt import GPT as LitGPT

    peer = LitGPT(litgpt_config(fields, "decode", model.config.max_position_embeddings))
    peer.apply(peer._init_weights)
    return peer


def litgpt_weights(model: GPT) -> dict[str, Tensor]:
    """Return a kvlab model's weights under litgpt's names; query, key, value are one matrix."""
    mine = model.state_dict()
    found = {
        "lm_head.weight": model.output_weight.detach(),
        "transformer.wte.weight": mine["embed_tokens.weight"],
        "transformer.ln_f.weight": mine["norm.weight"],
    }
    same = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for idx in range(model.config.num_hidden_layers):
        for theirs, ours in same.items():
            found[f"transformer.h.{idx}.{theirs}.weight"] = mine[f"layers.{idx}.{ours}.weight"]
        # All queries, all keys, all values (qkv_reassemble in its convert_hf_checkpoint.py).
        parts = [mine[f"layers.{idx}.self_attn.{part}_proj.weight"] for part in "qkv"]
        found[f"transformer.h.{idx}.attn.qkv.weight"] = torch.cat(parts)
    return found


@dataclass(frozen=True)
class System:
    """One row of the comparison."""

    attention: str
    """The kvlab attention whose dimensions it has."""
    build: Callable[[GPT], Decoder]
    """Makes it of the kvlab model of its attention."""
    cache: str
    """The kind of system: what it needs is counted in `decode_memory`."""
    is_peer: bool = True
    has_same_weights: bool = True


SYSTEMS: dict[str, System] = {
    **{
        f"kvlab-{name}": System(name, kvlab, PREALLOCATED, is_peer=False)
        for name in ("mha", "mqa", "gqa", "mla_no_rope", "mla")
    },
    "transformers-mha": System("mha", transformers_llama, DYNAMIC),
    "transformers-mha-static": System("mha", transformers_llama_static, STATIC),
    "transformers-gqa": System("gqa", transformers_llama, DYNAMIC),
    "transformers-mqa": System("mqa", transformers_llama, DYNAMIC),
    "transformers-mla": System("mla", transformers_deepseek_v3, DYNAMIC),
    "litgpt-mha": System("mha", litgpt, LITGPT),
    "litgpt-gqa": System("gqa", litgpt, LITGPT),
    "litgpt-mqa": System("mqa", litgpt, LITGPT),
    "litgpt-mla": System("mla", litgpt_latent, LITGPT, has_same_weights=False),
}


@torch.inference_mode()
def logit_difference(ours: Decoder, theirs: Decoder, vocab_size: int, device: str) -> float:
    """Return the largest difference of two systems' logits over the deviation of ours.

    Two prompts of 24 tokens at once, then four tokens one after the other, each system through its
    own cache.
    """
    prompt, steps = 24, 4
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocab_size, (2, prompt + steps), generator=generator).to(device)
    chunks = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
    logits = []
    for decoder in (ours, theirs):
        decoder.start(batch=2, context=0, room=prompt + steps)
        logits.append(torch.cat([decoder.step(chunk) for chunk in chunks], dim=1).float())
        decoder.stop()
    return float((logits[0] - logits[1]).abs().max() / logits[0].std())
