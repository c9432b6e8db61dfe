"""What transformers prints and raises, made silent and one line long."""

import contextlib
from collections.abc import Iterator

from data.errors import DataError
from data.hub.connection import explain
from interop.errors import InteropError
from tracking.failures import is_out_of_memory


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence transformers, which would print what a folder brings."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def refusal(name: str, why: str) -> InteropError:
    """Return what to raise about a model, by the name that it was given."""
    return InteropError(f"hf ({name!r}): {why}")


@contextlib.contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Turn what the libraries raise about an external folder into one line."""
    try:
        with silenced():
            yield
    except (InteropError, DataError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise refusal(name, " ".join(explain(error).split())) from error
