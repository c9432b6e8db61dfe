"""Tokens to logits: attention, rotary positions, KV cache, the model, generation, accounting."""
