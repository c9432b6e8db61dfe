"""Attention, each usable alone: configuration classes, modules, and the registry of names."""

from modeling.attention.base import Attention, AttentionConfig, Placement
from modeling.attention.forward_pass import ForwardPass
from modeling.attention.grouped_query import GroupedQueryAttention, GroupedQueryAttentionConfig
from modeling.attention.latent import LatentAttention, LatentAttentionConfig
from modeling.attention.registry import (
    attention_config,
    attention_config_class,
    attention_names,
    register_attention,
)
from modeling.attention.softmax import SoftmaxAttentionConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "ForwardPass",
    "GroupedQueryAttention",
    "GroupedQueryAttentionConfig",
    "LatentAttention",
    "LatentAttentionConfig",
    "Placement",
    "SoftmaxAttentionConfig",
    "attention_config",
    "attention_config_class",
    "attention_names",
    "register_attention",
]
