"""What a run writes and reads back: its folder, metrics, checkpoints and the wandb mirror."""
