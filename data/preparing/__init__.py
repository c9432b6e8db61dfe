"""One preparation: documents through a tokenizer into shards, resumable at any moment."""
