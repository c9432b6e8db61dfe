"""What each entry point does with its checked configuration, from top to bottom."""
