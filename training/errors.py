"""What ends a training early."""


class TrainingError(ValueError):
    """A setting or a state of training that a user can mend; one line, no traceback."""


class TrainingInterrupted(Exception):
    """Training stopped on a signal after saving a checkpoint; rerunning the command resumes."""
