"""Text to tokenizer to token shards to batches: sources, tokenizing, shards, batches."""
