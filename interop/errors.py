"""The errors of a model that cannot leave kvlab, or enter it, as asked."""


class InteropError(ValueError):
    """What a user can mend, in one line: which key or file, what is wrong and what to do."""


class ExportMismatch(InteropError):
    """What was written computes something else than kvlab's model; no setting mends that."""
