"""What ends a training early."""


class TrainingError(ValueError):
    """A setting or a state of training that a user can mend; one line, no traceback."""


class TrainingFailed(TrainingError):
    """Training cannot go on with these numbers or this memory; one line, exit status 1."""


class TrainingInterrupted(Exception):
    """Training was stopped after saving a checkpoint; rerunning the command resumes."""
