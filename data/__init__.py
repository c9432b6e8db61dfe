"""Text to tokenizer to token shards to batches."""
