"""The errors that users of a run folder or a checkpoint see."""


class RunError(RuntimeError):
    """What a user can cause, or must hear about, in a run folder or a checkpoint.

    The message is one line: what is wrong, which file, what to do. Entry points print it without
    a traceback and exit with status 2.
    """


class WriteFailed(RunError):
    """The disk did not take a file: no fault of the configuration, so the exit status is 1."""
