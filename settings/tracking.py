"""Keys of the `tracking` group."""

import os
from dataclasses import dataclass
from typing import Optional

from settings.fields import Section, either, key

MODES = ("online", "offline", "disabled")
MODE_ALIASES = {"dryrun": "offline", "run": "online"}  # values that WANDB_MODE also takes
_LONGEST_NAME = 128
_LONGEST_TAG = 64
_FORBIDDEN_IN_PROJECT = "/\\#?%:"


@dataclass
class TrackingSettings(Section, prefix="tracking."):
    """Where the metrics of a run go in addition to its `metrics.jsonl`.

    A value wins over the environment. WANDB_NAME, WANDB_NOTES, WANDB_JOB_TYPE, WANDB_DIR and, for a
    single run, WANDB_RUN_ID always hold.
    """

    name: str = key()
    """Label of the choice."""
    wandb: bool = True
    """Whether to mirror the run to Weights & Biases; where false, the rest has no effect."""
    project: Optional[str] = key(None)  # noqa: UP045
    """wandb project that collects the runs; null is WANDB_PROJECT, or kvlab."""
    entity: Optional[str] = key(None)  # noqa: UP045 (OmegaConf 2.3 schemas)
    """wandb user or team; null is WANDB_ENTITY, or the default of your API key."""
    group: Optional[str] = key(None)  # noqa: UP045
    """Groups runs in the wandb interface, such as the seeds of a variant; null is WANDB_RUN_GROUP,
    or the run's name."""
    tags: list[str] = key(list)
    """Labels to filter by in the wandb interface, such as [ablation, long-context]; [] is
    WANDB_TAGS (a,b)."""
    mode: Optional[str] = key(None, one_of=MODES)  # noqa: UP045
    """online, offline or disabled; null takes the environment variable WANDB_MODE if it is set,
    else goes online where an API key is configured (wandb login, or WANDB_API_KEY) and offline
    otherwise. Upload an offline run later with `wandb sync <run folder>/wandb/offline-run-*`."""
    init_timeout_seconds: float = key(10.0, above=0, at_most=60)
    """Longest wait for the wandb server, in seconds; the run then continues offline."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with lengths, characters and the environment."""
        texts = [("project", self.project, _LONGEST_NAME), ("entity", self.entity, _LONGEST_NAME)]
        texts += [("group", self.group, _LONGEST_NAME)]
        texts += [("tags", tag, _LONGEST_TAG) for tag in self.tags]
        found = [
            f"tracking.{name} ({text[:20]!r}) has {len(text)} characters; use 1 to {longest}, or "
            f"{'no such tag' if name == 'tags' else 'null'}"
            for name, text, longest in texts
            if text is not None and not 1 <= len(text) <= longest
        ]
        if set(self.project or "") & set(_FORBIDDEN_IN_PROJECT):
            found.append(
                f"tracking.project ({self.project!r}) must not contain any of "
                f"{' '.join(_FORBIDDEN_IN_PROJECT)}"
            )
        if len(set(self.tags)) < len(self.tags):
            found.append(f"tracking.tags ({self.tags}) must name each tag once")
        mode = os.environ.get("WANDB_MODE") if self.wandb and self.mode is None else None
        if mode and mode not in (*MODES, *MODE_ALIASES):
            found.append(
                f"the environment variable WANDB_MODE is {mode!r}; set it to {either(MODES)}, or "
                "set tracking.mode"
            )
        return found
