"""A run's recorded configuration, key by key: read back, and what in it may differ."""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.disk import one_line
from files.errors import RunError
from files.regular_file import read_regular_file

# Many times what is written, of a mixture of a hundred corpora too; PyYAML is slow.
_MAX_BYTES = 4 << 20
_MAX_DEPTH = 20

# A run may be resumed with other values of these: they change what is watched, and where it runs;
# where that changes the last bits, resuming says so.
_NO_PART_OF_THE_RESULT = (
    "runs_dir",
    "study",
    "init_from",  # a place; what it held is init_sha256
    "tracking.",
    "sampling.",
    "schedule.warmup_at_most",  # what it comes to is in warmup_steps
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
# The fingerprint of the prepared data, which a checkpoint has, identifies what was read there.
_OUTSIDE_THE_TEXT = re.compile(
    r"data\.(corpora\.[^.]+\.)?(prepared_dir|path|num_workers|sample_prompt)|tokenizer\.path"
)


# These may change too, if their product stays: a run that is out of memory takes more and smaller
# passes.
PASSES = ("trainer.micro_batch_size", "trainer.gradient_accumulation_steps")


def sequences_per_step(settings: Mapping[str, Any]) -> int | None:
    """Return the sequences of an optimizer step, of all passes; None where that is not recorded."""
    values = [value for key in PASSES if isinstance(value := settings.get(key), int)]
    return math.prod(values) if len(values) == len(PASSES) else None


def may_change(key: str) -> bool:
    """Tell a dotted key that has no part in what a run computes from one that has."""
    return key.startswith(_NO_PART_OF_THE_RESULT) or _OUTSIDE_THE_TEXT.fullmatch(key) is not None


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
        RunError: If it is missing, no regular file or too large, or not what this program writes:
            nested mappings of plain values.
    """
    from omegaconf import OmegaConf

    try:
        text = read_regular_file(path, _MAX_BYTES).decode()
        _require_plain_yaml(text)
        # PyYAML alone would make a string of 3e-4.
        nested = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        if not isinstance(nested, dict):
            raise ValueError("no mapping")
    except Exception as error:
        is_short = isinstance(error, OSError | _NotPlainError)
        cause = one_line(error) if is_short else type(error).__name__
        raise RunError(
            f"{path} cannot be read ({cause}); remove the run's folder or choose another run_name"
        ) from error
    return flat(nested)


class _NotPlainError(ValueError):
    """YAML that this program does not write."""


def _require_plain_yaml(text: str) -> None:
    """Refuse what makes a short file long, aliases above all, before anything is built from it."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _NotPlainError(f"line {event.start_mark.line + 1} holds an alias")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _NotPlainError(f"nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that have a part in the result and differ, with both values, by name."""
    return {
        key: (one.get(key), other.get(key))
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key) and not may_change(key)
    }
