"""Perplexity, KV-cache measurements, and the comparison of runs."""
