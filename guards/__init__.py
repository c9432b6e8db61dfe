"""What text goes through before it is shown, and a process that must not outlive its parent."""
