"""Where a run is written down: in its folder, in wandb and on the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from files.atomic import write_text
from tracking.metrics import MetricsLog, NoMetrics
from tracking.notices import Say
from tracking.run_folder import RunFolder
from tracking.wandb_mirror import WandbMirror

_MIRRORED = {
    "validation/nll": "validation_nll",
    "validation/perplexity": "validation_perplexity",
    "validation/bits_per_byte": "validation_bits_per_byte",
    "kv_cache/bytes_per_token": "kv_cache_bytes_per_token",
    "kv_cache/bytes_at_context": "kv_cache_bytes_at_context",
    "kv_cache/measured_bytes": "kv_cache_bytes_measured",
    "kv_cache/bytes_read_per_step": "kv_cache_bytes_read_per_step",
    "perf/mfu": "mfu",
}
"""What wandb also gets of a summary as metrics, by their names there."""


@dataclass(eq=False)
class RunLog:
    """Metrics, sample text and summary of a run. Every rank has one; that of rank 0 writes.

    Args:
        run: The folder.
        mirror: Gets the metrics and the summary, too.
        say: Prints a line.
        is_main: Whether this is rank 0.

    Attributes:
        name: Of the run.
        folder: Of the run.
        metrics: The log of the metrics; one that writes nothing on other ranks than 0.
    """

    run: RunFolder
    mirror: WandbMirror
    say: Say
    is_main: bool = field(kw_only=True)

    def __post_init__(self) -> None:
        self.name, self.folder = self.run.path.name, self.run.path
        self.metrics = MetricsLog(self.run.metrics_path) if self.is_main else NoMetrics()

    def log(self, step: int, tokens_seen: int, metrics: dict[str, Any]) -> None:
        """Write the metrics of a step."""
        self.metrics.append({"step": step, "progress/tokens": tokens_seen} | metrics)
        self.mirror.log(metrics, tokens_seen)

    def mirror_summary(self, summary: Mapping[str, Any]) -> None:
        """Send the final numbers to wandb."""
        metrics = {name: summary[key] for name, key in _MIRRORED.items()}
        self.mirror.log(metrics, summary["tokens_trained"])
        self.mirror.summary({k: v for k, v in summary.items() if k not in ("versions", "numerics")})

    def write_sample(self, text: str) -> None:
        """Write a text of the trained model."""
        if self.is_main:
            write_text(self.run.samples_path, text + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json: a run that has one is finished."""
        if self.is_main:
            self.run.write_summary(summary)
