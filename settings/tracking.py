"""The settings of the `tracking` configuration group."""

import math
import os
from dataclasses import dataclass, field
from typing import Optional

MODES = ("online", "offline", "disabled")
MODE_ALIASES = {"dryrun": "offline", "run": "online"}  # values that WANDB_MODE also takes
_MAX_NAME_LENGTH = 128
_MAX_TAG_LENGTH = 64
_FORBIDDEN_IN_PROJECT = "/\\#?%:"


@dataclass
class TrackingSettings:
    """Where the metrics of a run go besides its `metrics.jsonl`.

    Attributes:
        name: Name of the choice, as in `tracking=wandb`.
        wandb: Whether to mirror the run to wandb.
        project: wandb project; None takes WANDB_PROJECT if that is set, else "kvlab".
        entity: wandb user or team; None takes WANDB_ENTITY, else the key's default.
        group: wandb group; None takes WANDB_RUN_GROUP, else the run's name.
        tags: wandb tags; where there are none, those of WANDB_TAGS (a,b).
        mode: "online", "offline" or "disabled"; None takes WANDB_MODE if that is set, else online
            where an API key is configured and offline otherwise.
        init_timeout_seconds: Longest wait for the wandb server, before going on offline.
    """

    name: str = "???"
    wandb: bool = True
    project: Optional[str] = None  # noqa: UP045
    entity: Optional[str] = None  # noqa: UP045 (OmegaConf 2.3 schemas)
    group: Optional[str] = None  # noqa: UP045
    tags: list[str] = field(default_factory=list)
    mode: Optional[str] = None  # noqa: UP045
    init_timeout_seconds: float = 10.0

    def problems(self) -> list[str]:
        """Return one line per invalid setting: the key, its value and what would be valid."""
        found = []
        if self.mode is not None and self.mode not in MODES:
            found.append(f"tracking.mode is {self.mode!r}; use null, {', '.join(MODES)}")
        mode = os.environ.get("WANDB_MODE") if self.wandb and self.mode is None else None
        if mode and mode not in (*MODES, *MODE_ALIASES):
            found.append(
                f"the environment variable WANDB_MODE is {mode!r}; set it to "
                f"{', '.join(MODES[:-1])} or {MODES[-1]}, or set tracking.mode"
            )
        project = "kvlab" if self.project is None else self.project
        if not 1 <= len(project) <= _MAX_NAME_LENGTH:
            found.append(
                f"tracking.project has {len(project)} characters; use null or 1 to "
                f"{_MAX_NAME_LENGTH}"
            )
        if any(character in _FORBIDDEN_IN_PROJECT for character in project):
            found.append(
                f"tracking.project is {self.project!r}; it must not contain any of "
                f"{' '.join(_FORBIDDEN_IN_PROJECT)}"
            )
        if self.entity == "":
            found.append("tracking.entity is empty; use null for the default of your API key")
        if self.group is not None and not 1 <= len(self.group) <= _MAX_NAME_LENGTH:
            found.append(
                f"tracking.group has {len(self.group)} characters; use null or 1 to "
                f"{_MAX_NAME_LENGTH}"
            )
        found += [
            f"tracking.tags has the tag {tag!r}; use 1 to {_MAX_TAG_LENGTH} characters"
            for tag in self.tags
            if not 1 <= len(tag) <= _MAX_TAG_LENGTH
        ]
        if len(set(self.tags)) < len(self.tags):
            found.append(f"tracking.tags is {list(self.tags)}; name each tag once")
        if not (math.isfinite(self.init_timeout_seconds) and 0 < self.init_timeout_seconds <= 60):
            found.append(
                f"tracking.init_timeout_seconds is {self.init_timeout_seconds}; use more than 0 "
                "and at most 60"
            )
        return found
