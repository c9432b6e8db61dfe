"""Budget, schedule, optimizer and the training loop."""
