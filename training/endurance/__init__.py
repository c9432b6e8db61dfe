"""What lets a run outlive signals, failures and time limits: checkpoints, resuming, rescue."""
