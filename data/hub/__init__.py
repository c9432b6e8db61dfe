"""The Hugging Face Hub: reaching it, and noticing when it has fallen silent."""
