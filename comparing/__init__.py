"""Numbers of several models: variants, seeds, the baseline, intervals and verdicts."""
