"""A comparison as tables, sentences, plots and files."""
