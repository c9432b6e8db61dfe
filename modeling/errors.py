"""The error of a model that cannot be built or run as asked."""

from collections.abc import Sequence


class ModelConfigError(ValueError):
    """A model setting that a user can mend: every message names the key, the value and a way out.

    Args:
        problems: One sentence per problem; all are reported at once.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))
