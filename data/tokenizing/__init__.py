"""Text to token ids: building, storing and running tokenizers."""
