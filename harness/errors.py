"""The error of a task that cannot be run."""


class TaskError(ValueError):
    """What a user can mend, in one line: which key or file, what is wrong and what to do."""
