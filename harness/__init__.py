"""Tasks of lm-evaluation-harness (lm_eval) on models."""
