"""What ends a training early."""


class TrainingError(ValueError):
    """A setting or a state of training that a user can mend; one line, no traceback."""


class TrainingFailed(TrainingError):
    """Training cannot continue with these numbers or this memory; one line, exit status 1."""


class TrainingDiverged(TrainingFailed):
    """The loss, the gradients or the weights are no longer finite numbers."""


class TrainingInterrupted(Exception):
    """Training was stopped after saving a checkpoint; rerunning the command resumes."""


class AlreadyReported(Exception):
    """One of several ranks ended with an error, which it or another has printed.

    Attributes:
        kind: Name of the error's class, from which the exit status follows.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind
