"""Every key of a configuration: its default, its range, its meaning, its part in a run's result."""
