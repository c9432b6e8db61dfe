"""Check an attention of your own: python -m modeling.check attention=NAME."""

import ensure_environment

ensure_environment.ensure()

import re  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import run_config  # noqa: E402
from launch.compose import COMPOSING_FAILED, checked, composed  # noqa: E402
from launch.errors import ConfigError  # noqa: E402
from launch.explain import explain  # noqa: E402
from launch.failures import EXIT_BAD_INPUT, EXIT_FAILED, USER_ERRORS, tell, tell_of  # noqa: E402
from launch.terminal import is_whole, outlive_readers, say  # noqa: E402

if TYPE_CHECKING:
    from modeling.attention import AttentionConfig

# Small enough that a gradient can be checked number by number.
SMALL = ("model=nano", "model.hidden_size=32", "model.num_attention_heads=4")
_USAGE = "python -m modeling.check attention=NAME; also attention=NAME,NAME or attention=all"


def names() -> list[str]:
    """Return the attentions that conf/attention has a file for."""
    return sorted(path.stem for path in (run_config.ROOT / "conf" / "attention").glob("*.yaml"))


def example(name: str, overrides: Sequence[str] = ()) -> "AttentionConfig":
    """Return a small attention as its file in conf/attention describes it.

    Args:
        name: Of the file.
        overrides: Keys of train_model.py, such as model.attention.kv_lora_rank=8.
    """
    from modeling.attention import attention_config

    config = composed("train", [*SMALL, f"attention={name}", *overrides])
    return attention_config(checked(config, run_config.TrainConfig).model.attention)


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
    chosen = names() if chosen == ["all"] else chosen
    from modeling.contract import CHECKS, examine

    failures = 0
    for name in chosen:
        config = example(name, others)
        say(f"{name}: {config}")
        for check in CHECKS:
            promise = (check.__doc__ or "").partition("\n")[0].rstrip(".")
            found = examine(check, config)
            failures += not found.passed
            where = "" if found.passed else f"; look at {found.hint}"
            say(f"{'✓' if found.passed else '✗'} {promise}: {found.measured}{where}")
    say(f"{len(chosen) * len(CHECKS) - failures} of {len(chosen) * len(CHECKS)} checks passed")
    return EXIT_FAILED if failures else 0


def run(arguments: Sequence[str]) -> int:
    """Call `main`; a mistake in what was typed is one line."""
    outlive_readers()
    tell_of("", "train")
    try:
        status = main(arguments)
        return status if status or is_whole() else EXIT_FAILED
    except USER_ERRORS as error:
        tell(error)
    except COMPOSING_FAILED as error:
        tell(ConfigError(explain(error, run_config.TrainConfig)))
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
