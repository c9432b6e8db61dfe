"""A run's recorded configuration, key by key: read back, and what in it may differ."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.errors import RunError

# A run may be resumed with other values of these: they change what is watched, and where it runs;
# where that changes the last bits, resuming says so.
_NO_PART_OF_THE_RESULT = (
    "runs_dir",
    "study",
    "tracking.",
    "sampling.",
    "eval.",
    "trainer.device",
    "trainer.deterministic",
    "trainer.num_threads",
    "trainer.tune_allocator",
    "trainer.compile",
    "trainer.profile",
    "trainer.max_minutes",
    "trainer.parallelism",
    "trainer.rank_timeout_seconds",
    "trainer.activation_checkpointing",
    "trainer.log_every_steps",
    "trainer.eval_every_steps",
    "trainer.eval_tokens",
    "trainer.checkpoint_every_steps",
    "trainer.keep_last",
    "trainer.sample_",
)
_PLACE_OF_DATA = re.compile(r"data\.(corpora\.[^.]+\.)?(prepared_dir|num_workers)")


# These may change too, if their product stays: a run that is out of memory takes more and smaller
# passes.
PASSES = ("trainer.micro_batch_size", "trainer.gradient_accumulation_steps")


def sequences_per_step(settings: Mapping[str, Any]) -> int | None:
    """Return the sequences of an optimizer step, of all passes; None where that is not recorded."""
    values = [value for key in PASSES if isinstance(value := settings.get(key), int)]
    return math.prod(values) if len(values) == len(PASSES) else None


def may_change(key: str) -> bool:
    """Tell a dotted key that has no part in what a run computes from one that has."""
    return key.startswith(_NO_PART_OF_THE_RESULT) or _PLACE_OF_DATA.fullmatch(key) is not None


def flat(node: Mapping[Any, Any]) -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{rest}": inner for rest, inner in flat(value).items()}
        else:
            found[str(key)] = value
    return found


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a config.yaml, with dotted keys.

    Raises:
        RunError: If it is missing or cannot be read.
    """
    from omegaconf import OmegaConf

    try:
        # PyYAML alone would make a string of 3e-4.
        nested = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(nested, dict):
            raise ValueError("no mapping")
    except Exception as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}); remove the run's folder or choose "
            "another run_name"
        ) from error
    return flat(nested)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that have a part in the result and differ, with both values, by name."""
    return {
        key: (one.get(key), other.get(key))
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key) and not may_change(key)
    }
