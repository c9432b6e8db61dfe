"""An attention of your own: register it, check what every attention promises, train it.

From the checkout: python -m examples.own_attention
For train_model.py it becomes a module, a YAML file and an oracle: docs/own_attention.md.
"""

from dataclasses import dataclass

import torch

from modeling.attention.grouped_query import GroupedQueryAttention, GroupedQueryAttentionConfig
from modeling.attention.registry import register_attention
from modeling.config import GPTConfig
from modeling.contract import CHECKS, examine
from modeling.gpt import GPT


@register_attention("gated_example")
@dataclass(frozen=True, kw_only=True)
class GatedConfig(GroupedQueryAttentionConfig):
    """Grouped-query attention and a gate [m, m] on its output: what it adds is counted here."""

    def build(self, layer_idx=0):
        return Gated(self, layer_idx)

    def num_parameters(self):
        return super().num_parameters() + self.hidden_size**2

    def flops_per_token(self, context_length):
        return super().flops_per_token(context_length) + 2 * self.hidden_size**2


class Gated(GroupedQueryAttention):
    """The module: the gate is made from the same input."""

    def __init__(self, config, layer_idx=0):
        super().__init__(config, layer_idx)
        self.gate_proj = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, positions, cache=None, **options):
        return torch.sigmoid(self.gate_proj(x)) * super().forward(x, positions, cache, **options)


if __name__ == "__main__":
    sizes = {"hidden_size": 32, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    small = GatedConfig(**sizes, **heads)
    print(f"{sum(examine(check, small).passed for check in CHECKS)} of {len(CHECKS)} promises kept")
    torch.manual_seed(0)
    attention = {"name": "gated_example", **sizes, **heads}
    model = GPT(GPTConfig(vocab_size=64, attention=attention, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.arange(4 * 33).view(4, 33) % 64  # to count is learned at once
    for step in range(1, 21):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.2f}")
