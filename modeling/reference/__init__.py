"""Naive float64 attention, one query and one key at a time: the oracles of the tests.

Written from the papers' equations with explicit loops, and sharing nothing with the fast modules.
"""

from modeling.reference.common import Producer
from modeling.reference.registry import oracle_of, register_oracle

__all__ = ["Producer", "oracle_of", "register_oracle"]
