"""Text: the corpora that there are, as documents by split."""
