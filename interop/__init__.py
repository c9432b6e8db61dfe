"""Models as transformers stores them, read and written."""
