"""The language model: embeddings, pre-norm blocks, output projection."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modeling.arrangement import layer_configs
from modeling.attention import AttentionConfig
from modeling.attention.forward_pass import ForwardPass
from modeling.config import GPTConfig
from modeling.documents import document_starts
from modeling.errors import ModelConfigError
from modeling.kv_cache import KVCache, LayerCache
from modeling.layers import build_mlp, build_norm
from modeling.linear import linear
from modeling.loss import linear_cross_entropy, linear_token_nll
from modeling.rope import Positions


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        recompute: Keep nothing but the input for the backward pass, and compute the rest again
            there, with the same random numbers.
    """

    def __init__(self, config: GPTConfig, attention: AttentionConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config)
        self.self_attn = attention.build(layer_idx)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = build_mlp(config)
        self.recompute = False

    def forward(
        self,
        x: Tensor,
        positions: Tensor | Positions,
        cache: LayerCache | None = None,
        forward_pass: ForwardPass | None = None,
    ) -> Tensor:
        """[b, s, m] -> [b, s, m]; arguments as in `Attention.forward`."""
        # What is appended to a cache cannot be computed twice.
        if self.recompute and cache is None and torch.is_grad_enabled():
            again = checkpoint(self._forward, x, positions, None, forward_pass, use_reentrant=False)
            return cast(Tensor, again)
        return self._forward(x, positions, cache, forward_pass)

    def _forward(
        self,
        x: Tensor,
        positions: Tensor | Positions,
        cache: LayerCache | None,
        forward_pass: ForwardPass | None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, cache, forward_pass=forward_pass)
        return x + self.mlp(self.post_attention_layernorm(x))

    def residual_projections(self) -> list[nn.Linear]:
        """Return the projections that write into the residual stream."""
        return [*self.self_attn.residual_projections(), self.mlp.down_proj]


class GPT(nn.Module):
    """A GPT-style language model whose attention is whatever the configuration names.

    Args:
        config: The whole model; `vocab_size` must be set, and `end_of_document_id` where
            `intra_document_mask` is.

    Raises:
        ModelConfigError: If it cannot be built as asked.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_configs = layer_configs(config)
        sources = (attention.state().source for attention in self.attention_configs)
        self._read_layers = frozenset(source for source in sources if source is not None)
        if config.vocab_size is None:
            raise ModelConfigError("model.vocab_size is not set; give the tokenizer's")
        if config.intra_document_mask and config.end_of_document_id is None:
            raise ModelConfigError(
                "model.end_of_document_id is not set, and model.intra_document_mask needs it; give "
                "the tokenizer's"
            )
        self.config = config
        # What PyTorch's constructors draw is thrown away, and how much depends on the attention:
        # every attention starts from the same random state, so the embeddings are the same.
        with torch.random.fork_rng(devices=[]):
            self._build(config)
        self._initialise()

    def _build(self, config: GPTConfig) -> None:
        assert config.vocab_size is not None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, attention, idx) for idx, attention in enumerate(self.attention_configs)
        )
        self.norm = build_norm(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _initialise(self) -> None:
        """Draw weights from N(0, initializer_range); residual projections / sqrt(2 layers).

        Source: GPT-2 (Radford et al. 2019), section 2.3.
        """
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self._blocks():
            for projection in block.residual_projections():
                nn.init.normal_(projection.weight, std=std / math.sqrt(2 * len(self.layers)))

    def _blocks(self) -> Iterator[Block]:
        """The layers with their own type, which ModuleList forgets."""
        return (cast(Block, layer) for layer in self.layers)

    def recompute_activations(self, enabled: bool) -> None:
        """Trade time for memory: have each block computed again in the backward pass, or not."""
        for block in self._blocks():
            block.recompute = enabled

    @property
    def output_weight(self) -> Tensor:
        """The output projection, [n, m]."""
        tied = self.config.tie_word_embeddings
        return self.embed_tokens.weight if tied else self.lm_head.weight

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised output of the last block.

        Args:
            tokens: [b, s] int64.
            positions: [s] or [b, s]; if not given, they continue what the cache holds, through
                every document (with `intra_document_mask` too).
            cache: Keys and values of earlier tokens; the s new ones are appended.
            attention_mask: Bool, [b, t], True where a token is real, or [b, s, t], True where a
                query may see a key; causality, and the documents where the model separates them,
                apply too.

        Returns:
            [b, s, m].

        Raises:
            ModelConfigError: If a learned position embedding does not reach that far.
            ValueError: If the cache was made for another model, or has no room for the tokens.
        """
        if cache is not None:
            cache.check_made_for(self, len(self.layers))
        past = 0 if cache is None else cache.seen
        first, last = past, past + tokens.shape[1] - 1
        learned = self.config.position_embedding == "learned"
        if positions is None:
            positions = torch.arange(first, last + 1, device=tokens.device)
        elif learned and positions.numel():
            first, last = int(positions.min()), int(positions.max())
        x = self.embed_tokens(tokens)
        if learned:
            known = self.config.max_position_embeddings
            if first < 0 or last >= known:
                raise ModelConfigError(
                    f"positions {first} to {last} are not within the {known} that this model "
                    "learned; use a shorter text, or a model with a longer context or with RoPE"
                )
            x = x + self.embed_positions(positions)
        starts = document_start = None
        if self.config.intra_document_mask:
            assert self.config.end_of_document_id is not None
            started = None if cache is None else cache.document_start
            starts, document_start = document_starts(
                tokens, self.config.end_of_document_id, past, started
            )
        forward_pass = ForwardPass(attention_mask, starts, self._read_layers)
        angles = Positions(positions)
        for idx, block in enumerate(self.layers):
            x = block(x, angles, None if cache is None else cache.layers[idx], forward_pass)
        if cache is not None:
            # Only now: where a layer refuses the tokens, the cache is as it was.
            cache.document_start = document_start
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return logits, [b, s, n]; arguments as in `hidden_states`."""
        hidden = self.hidden_states(tokens, positions, cache, attention_mask)
        return linear(hidden, self.output_weight)

    def next_logits(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits behind the last token alone, [b, n]; arguments as in `hidden_states`.

        A prompt's other logits, n floats a token, are never computed.
        """
        hidden = self.hidden_states(tokens, positions, cache, attention_mask)
        return linear(hidden[:, -1], self.output_weight)

    def loss(self, tokens: Tensor, targets: Tensor, z_loss_weight: float = 0.0) -> Tensor:
        """Return the mean NLL in nats of targets [b, s] given tokens [b, s].

        With a `z_loss_weight` its gradient is that of NLL and z-loss; see `linear_cross_entropy`.
        """
        hidden = self.hidden_states(tokens).flatten(0, 1)
        return linear_cross_entropy(hidden, self.output_weight, targets.flatten(), z_loss_weight)

    @torch.no_grad()
    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target, [b, s], float32 or wider."""
        hidden = self.hidden_states(tokens).flatten(0, 1)
        return linear_token_nll(hidden, self.output_weight, targets.flatten()).view_as(targets)

    def new_cache(
        self, batch_size: int, max_length: int, dtype: torch.dtype | None = None
    ) -> KVCache:
        """Return an empty cache for `batch_size` sequences of up to `max_length` tokens.

        It stores `dtype`, one of `kv_cache.CACHE_DTYPES`; the weights' own if not given.
        """
        layers = [
            block.self_attn.new_cache(batch_size, max_length, dtype)
            if block.self_attn.state.source is None
            else None
            for block in self._blocks()
        ]
        return KVCache(layers, model=self)
