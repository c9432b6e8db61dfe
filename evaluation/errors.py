"""What a user can mend about an evaluation."""


class EvaluationError(ValueError):
    """One line: what is wrong, which run or key, what to do."""


class PlotError(RuntimeError):
    """One line: why matplotlib could not draw; a report does without its plots."""


class BrokenWeights(EvaluationError):
    """A model's likelihoods are not numbers, or so small that it has learned nothing."""
