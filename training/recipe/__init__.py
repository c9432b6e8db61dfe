"""What decides a run's numbers: budget, schedule, optimizers and their learning rate."""
