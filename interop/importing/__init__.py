"""Folders and repositories of transformers, read into kvlab's modules or transformers' own."""
