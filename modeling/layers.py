"""The parts of a block other than attention: MLPs and the choice of norm."""

import torch.nn.functional as F
from torch import Tensor, nn

from modeling.config import GPTConfig
from modeling.linear import Linear
from modeling.norms import RMSNorm


def build_norm(config: GPTConfig) -> nn.Module:
    """Build the norm of width m that the configuration names."""
    if config.norm == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202), named as in transformers' Llama."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        m, i, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(m, i, bias=bias)
        self.up_proj = Linear(m, i, bias=bias)
        self.down_proj = Linear(i, m, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, m] -> [b, s, m]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ClassicMLP(nn.Module):
    """Two projections with GELU or ReLU between, as in GPT-2 and the first Transformer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        m, i, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = Linear(m, i, bias=bias)
        self.down_proj = Linear(i, m, bias=bias)
        self.activation = F.gelu if config.mlp == "gelu" else F.relu

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, m] -> [b, s, m]."""
        return self.down_proj(self.activation(self.up_proj(x)))


def build_mlp(config: GPTConfig) -> GatedMLP | ClassicMLP:
    """Build the MLP that the configuration names."""
    return GatedMLP(config) if config.mlp == "swiglu" else ClassicMLP(config)
