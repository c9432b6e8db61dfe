"""What surrounds every call of lm_eval: its version, its generators, silence, and no code."""

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from data.errors import DataError
from data.hub.connection import explain
from harness.errors import TaskError
from modeling.errors import ModelConfigError

VERSION = "0.4.13"
"""The lm_eval with which all that is done against code in task files was checked."""
SEEDS = {"random": 0, "numpy": 1234, "few-shot examples": 1234}
"""lm_eval's own defaults."""
_ALONE = "DISABLE_MULTIPROC"


def require_accelerate() -> None:
    """Make sure that lm_eval's HFLM can be imported; lm_eval itself does not ask for it.

    Raises:
        TaskError: If accelerate is not installed.
    """
    if _installed("accelerate") is None:
        raise TaskError(
            "eval.tasks on a model in transformers' own modules needs accelerate; run: pip "
            f'install "lm_eval=={VERSION}" accelerate'
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_lm_eval() -> None:
    """Make sure that lm_eval is installed, in the version that was checked.

    Raises:
        TaskError: If it is not.
    """
    version = _installed("lm_eval")
    if version != VERSION:
        raise TaskError(
            f"eval.tasks needs lm-evaluation-harness {VERSION}, and {version or 'none'} is "
            f'installed; run: pip install "lm_eval=={VERSION}"'
        )


def sandbox_templates() -> None:
    """Have lm_eval render every template in jinja's sandbox.

    A plain environment lets a template reach any class, and through it any function.
    """
    import lm_eval.utils
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= {"regex_replace": lm_eval.utils.regex_replace}
    lm_eval.utils.env = sandbox


def seed_everything() -> None:
    """Start the global generators as lm_eval does: some tasks shuffle their answers."""
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])  # noqa: NPY002


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep lm_eval's progress, warnings and processes to itself, and code of the Hub out."""
    logger = logging.getLogger("lm_eval")
    modules: dict[str, Any] = sys.modules
    level, alone = logger.level, os.environ.get(_ALONE)
    evaluate = {name: modules[name] for name in ("evaluate",) if name in modules}
    logger.setLevel(logging.CRITICAL)
    # Functions of lm_eval's tasks would load metrics with it: importing it is an error now.
    modules["evaluate"] = None
    # A bootstrap would start a process for each core.
    os.environ[_ALONE] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        del modules["evaluate"], os.environ[_ALONE]
        modules |= evaluate
        if alone is not None:
            os.environ[_ALONE] = alone


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Say what a task's file or data got wrong in one line.

    A RuntimeError is PyTorch's: it may be out of memory, and is no task's fault.

    Raises:
        TaskError: For any other error.
    """
    try:
        yield
    except (DataError, TaskError, ModelConfigError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "scripts are no longer supported" in text:
            text = "its dataset is a script, and code of a dataset is never run"
        elif isinstance(error, ImportError) and "evaluate" in text:
            text = "it takes a metric from the Hub, where metrics are code, which is never run"
        elif type(error) is RuntimeError or type(error).__module__.startswith("torch"):
            raise
        else:
            text = explain(error)
        raise TaskError(f"{what}: {text}") from error
