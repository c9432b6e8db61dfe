"""What is wrong with a configuration, and what became of a job in another process."""


class ConfigError(ValueError):
    """The composed configuration is wrong; one line that names every problem."""


class JobFailed(Exception):
    """A job that a launcher ran in another process ended with this exit status."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status
