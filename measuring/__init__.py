"""Numbers of one model: perplexity, KV cache, decoding, tasks; runs and external models."""
