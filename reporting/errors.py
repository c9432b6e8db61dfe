"""What keeps a report from being drawn."""


class PlotError(RuntimeError):
    """One line: why matplotlib could not draw; a report does without its plots."""
