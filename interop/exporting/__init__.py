"""A model of kvlab's, written as a folder that transformers loads."""
