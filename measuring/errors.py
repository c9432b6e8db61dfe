"""What a user can mend about an evaluation."""


class EvaluationError(ValueError):
    """One line: what is wrong, which run or key, what to do."""


class BrokenWeights(EvaluationError):
    """A model's likelihoods are not numbers, or so small that it has learned nothing."""
