"""What every entry point shares, from the command line to the exit status."""
