"""What is wrong with a configuration."""


class ConfigError(ValueError):
    """The composed configuration is wrong; one line that names every problem."""
