"""A run's recorded configuration, key by key: read back, and what in it may differ."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.disk import one_line
from files.errors import RunError
from files.regular_file import read_regular_file
from settings.fields import changes_result
from settings.run import TrainConfig

# Many times what is written, of a mixture of a hundred corpora too; PyYAML is slow.
_MAX_BYTES = 4 << 20
_MAX_DEPTH = 20

# Other values are taken where their product stays: a run that is out of memory takes more and
# smaller passes.
PASSES = ("trainer.micro_batch_size", "trainer.gradient_accumulation_steps")


def sequences_per_step(settings: Mapping[str, Any]) -> int | None:
    """Return the sequences of an optimizer step, of all passes; None where that is not recorded."""
    values = [value for key in PASSES if isinstance(value := settings.get(key), int)]
    return math.prod(values) if len(values) == len(PASSES) else None


def may_change(key: str) -> bool:
    """Return whether a dotted key has no part in what a run computes."""
    return not changes_result(TrainConfig, key)


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
    # Runs of before recorded the group `layers` a second time.
    return {k: one for k, one in flat(nested).items() if not k.startswith("model.layers.")}


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
