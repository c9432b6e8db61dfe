"""The settings of the `tracking` configuration group."""

import math
from dataclasses import dataclass, field
from typing import Optional

MODES = ("online", "offline", "disabled")
_MAX_NAME_LENGTH = 128
_MAX_TAG_LENGTH = 64
_FORBIDDEN_IN_PROJECT = "/\\#?%:"


@dataclass
class TrackingSettings:
    """Where the metrics of a run go besides its `metrics.jsonl`.

    Attributes:
        name: Name of the choice, as in `tracking=wandb`.
        wandb: Whether to mirror the run to wandb.
        project: wandb project.
        entity: wandb user or team; None is the key's default.
        group: wandb group; None is the run's name, so that the parts of a resumed run sit together.
        tags: wandb tags.
        mode: "online", "offline" or "disabled"; None takes WANDB_MODE if that is set, else online
            where an API key is configured and offline otherwise.
        init_timeout_seconds: Longest wait for the wandb server, before going on offline.
    """

    name: str = "???"
    wandb: bool = True
    project: str = "kvlab"
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
        if not self.project or len(self.project) > _MAX_NAME_LENGTH:
            found.append(
                f"tracking.project has {len(self.project)} characters; use 1 to {_MAX_NAME_LENGTH}"
            )
        if any(character in _FORBIDDEN_IN_PROJECT for character in self.project):
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
