"""What a training shows: a bar while it works, and a line where there is something to keep."""

from measuring.perplexity import Score
from tracking.notices import Say
from tracking.progress import Bar, in_words


class Display(Bar):
    """Shows the steps of a training, and what is done between and after them.

    Args:
        num_steps: Of the run.
        say: Prints a line.
        is_shown: Whether there is a bar; only rank 0 has one.
    """

    def __init__(self, num_steps: int, say: Say, *, is_shown: bool) -> None:
        super().__init__(is_shown=is_shown)
        self._num_steps = num_steps
        self._say = say

    def step(self, step: int, measured: dict[str, float]) -> None:
        """Show on the bar what a step measured (see `Recorder.end_step`)."""
        self.show(
            step,
            self._num_steps,
            f"step {step:,} of {self._num_steps:,}",
            f"loss {measured['train/loss']:.3f}",
            f"{measured['perf/tokens_per_second']:,.0f} tokens/s",
            f"{in_words(measured['progress/seconds_left'])} left",
        )

    def phase(self, what: str) -> None:
        """Show on the bar what is done once all steps are."""
        self.show(1, 1, what)

    def validation(self, step: int, measured: dict[str, float], score: Score) -> None:
        """Print a line about a step with a validation."""
        self._say(
            f"step {step}: loss {measured['train/loss']:.3f}, validation perplexity "
            f"{score.perplexity:.2f} on its first {score.tokens_scored:,} tokens, "
            f"{measured['perf/tokens_per_second']:,.0f} tokens/s, "
            f"MFU {measured['perf/mfu']:.2f}, gradient norm {measured['train/grad_norm']:.2f}, "
            f"learning rate {measured['train/learning_rate']:.1e}, "
            f"{in_words(measured['progress/seconds_left'])} left"
        )
