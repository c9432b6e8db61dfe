"""Checking an attention of your own: what check_attention.py does."""

import re
from collections.abc import Sequence

from launch.compose import COMPOSING_FAILED, checked, composed
from launch.errors import ConfigError
from launch.explain import explain
from launch.failures import EXIT_BAD_INPUT, EXIT_FAILED, USER_ERRORS, report_error, report_of
from launch.schemas import TrainConfig
from launch.terminal import is_whole, outlive_readers, say
from launch.typed import for_hydra
from modeling.arrangement import layer_configs
from modeling.attention import (
    AttentionConfig,
    attention_config,
    attention_config_class,
    attention_names,
)
from modeling.config import GPTConfig
from modeling.contract import CHECKS, examine, placements, reading

# Small enough that a gradient can be checked number by number.
SMALL = ("model=nano", "model.hidden_size=32", "model.num_attention_heads=4")
_USAGE = (
    "python check_attention.py attention=NAME; also attention=NAME,NAME or attention=all, and keys "
    "of train_model.py such as layers=window"
)


def _model(name: str, overrides: Sequence[str] = ()) -> GPTConfig:
    """Return a small model with the attention that a file in conf/attention describes."""
    typed = [*SMALL, f"attention={name}", *overrides]
    return checked(composed("train", for_hydra("train", typed)), TrainConfig).model


def example(name: str) -> AttentionConfig:
    """Return the small attention that the class of a registered name gives."""
    config_class = attention_config_class(name)
    try:
        return config_class.example(name)
    except TypeError:  # of fields that it requires and does not give there: as its file says
        return attention_config(_model(name).attention)


def examples(name: str, overrides: Sequence[str] = ()) -> dict[str, AttentionConfig]:
    """Return the small attentions to check, by what to call them.

    Without overrides, the example that the class of the name gives, and what arrangements make of
    it; with them, the layers of a small model that they describe, each kind once.

    Args:
        name: Of the attention.
        overrides: Keys of train_model.py, such as model.attention.kv_lora_rank=8 or layers=window.
    """
    if not overrides:
        config = example(name)
        placed = placements(config).items()
        return {name: config} | {f"{name} {said}": each for said, each in placed}
    layers = layer_configs(_model(name, overrides))
    found: dict[str, AttentionConfig] = {}
    for idx, layer in enumerate(layers):
        source = layer.state().source
        each = layer if source is None else reading(layers[source], layer)
        if each not in found.values():
            found[name if each == layers[0] else f"{name}, layer {idx}"] = each
    return found


def main(arguments: Sequence[str]) -> int:
    """Check the attentions named, a line for each promise; return the exit status."""
    asked = [text for text in arguments if text.startswith("attention=")]
    others = [text for text in arguments if text not in asked]
    if len(asked) > 1 or any(text.startswith("-") or "=" not in text for text in others):
        is_help = bool({"-h", "--help"} & set(arguments))
        if is_help:
            say(_USAGE)
            return 0
        raise ConfigError(_USAGE)
    chosen = re.sub(r"[\[\]\s]", "", asked[0].partition("=")[2]).split(",") if asked else ["all"]

    chosen = attention_names() if chosen == ["all"] else chosen
    made = passed = 0
    for name in chosen:
        for said, config in examples(name, others).items():
            # Where arrangements put it, a line for all promises that are kept.
            in_short = said.startswith(f"{name} ")
            say(f"{said}:" if in_short else f"{said}: {config}")
            counts = _report(config, in_short)
            made, passed = made + counts[0], passed + counts[1]
    say(f"{passed} of {made} checks passed")
    return EXIT_FAILED if passed < made else 0


def _report(config: AttentionConfig, in_short: bool) -> tuple[int, int]:
    """Make all checks of an attention and print them; return how many were made, and passed."""
    made = passed = 0
    for check in CHECKS:
        promise = (check.__doc__ or "").partition("\n")[0].rstrip(".")
        found = examine(check, config)
        made, passed = made + found.made, passed + (found.made and found.passed)
        where = "" if found.passed else f"; look at {found.hint}"
        mark = "-" if not found.made else "✓" if found.passed else "✗"
        if mark == "✗" or not in_short:
            say(f"{mark} {promise}: {found.measured}{where}")
    if in_short:
        say(f"{'✓' if passed == made else '✗'} {passed} of {made} checks passed")
    return made, passed


def run(arguments: Sequence[str]) -> int:
    """Call `main`; a mistake in what was typed is one line."""
    outlive_readers()
    report_of("", "train")
    try:
        status = main(arguments)
        return status if status or is_whole() else EXIT_FAILED
    except USER_ERRORS as error:
        report_error(error)
    except COMPOSING_FAILED as error:
        report_error(ConfigError(explain(error, TrainConfig)))
    return EXIT_BAD_INPUT
