"""Which errors are a user's: how they are reported, and the exit status of each."""

import errno
import sys
import time
import traceback

from data.errors import DataError
from files.errors import RunError, WriteFailed
from harness.errors import TaskError
from interop.errors import ExportMismatch, InteropError
from launch.errors import ConfigError
from launch.terminal import complain
from measuring.errors import EvaluationError
from modeling.errors import ModelConfigError
from training.errors import TrainingError, TrainingFailed, TrainingInterrupted
from training.ranks.place import place

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75
EXIT_BEFORE_TRAINING = 130
_LONGEST_WAIT_SECONDS = 60.0

USER_ERRORS = (
    *(ConfigError, DataError, EvaluationError, InteropError, ModelConfigError, RunError),
    *(TaskError, TrainingError),
)
# By class name, which is what one rank knows of another's error; 1 for all others.
STATUS_OF = {error.__name__: EXIT_BAD_INPUT for error in USER_ERRORS} | {
    TrainingFailed.__name__: EXIT_FAILED,
    WriteFailed.__name__: EXIT_FAILED,
    ExportMismatch.__name__: EXIT_FAILED,
    TrainingInterrupted.__name__: EXIT_INTERRUPTED,
    KeyboardInterrupt.__name__: EXIT_BEFORE_TRAINING,
}
_LESS_MEMORY = {
    "train": "lower trainer.micro_batch_size, eval.batch_size or data.num_workers",
    "eval": "lower eval.batch_size or eval.cache_batch_size, or the contexts of eval.decode_speed",
    "generate": "lower max_new_tokens or shorten the prompt",
    "export": "lower calibration_tokens, or set device=cpu",
    "prepare": "lower data.num_workers or data.shard_tokens",
}
_OF_THE_MACHINE = {
    *(errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOSPC, errno.EROFS, errno.ESTALE),
}

_run = ""  # of several runs, whose errors are reported
_less_memory = ""  # what to lower where there is not enough


def report_of(name: str, config_name: str) -> None:
    """Remember whose errors are reported from now on.

    Args:
        name: Of several runs the one; '' where there is only one.
        config_name: Of the entry point, which decides what to lower where memory is short.
    """
    global _run, _less_memory
    _run, _less_memory = name, _LESS_MEMORY[config_name]


def report_error(error: BaseException) -> None:
    """Print an error on stderr: a user's as one line, any other with its traceback.

    Of several runs it names the one.
    """
    whose = f"{_run}: " if _run else ""
    if isinstance(error, KeyboardInterrupt):
        complain("interrupted")
    elif isinstance(error, (*USER_ERRORS, TrainingInterrupted)):
        complain(f"{whose}{error}")
    elif refused := _refused_by_the_machine(error):
        complain(f"{whose}{refused}")
    else:
        traceback.print_exception(error)
        if whose:
            complain(f"{whose}{type(error).__name__}, see above")


def report_for_all_ranks(error: Exception) -> None:
    """Report once what every rank finds by itself, such as a wrong configuration.

    The others wait to be ended by torchrun, which they would otherwise have end rank 0 before it
    spoke.
    """
    if rank_and_size()[0] > 0:
        # Still here afterwards, it is the only one that has found this.
        time.sleep(_LONGEST_WAIT_SECONDS)
    report_error(error)


def _refused_by_the_machine(error: BaseException) -> str:
    """Say what the machine refused, if that is what an error says; else return ''."""
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend that and run the same command again"
    is_known = isinstance(error, MemoryError)
    if not is_known and "torch" in sys.modules:
        from tracking.failures import is_out_of_memory

        is_known = is_out_of_memory(error)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"out of memory ({reason}); {_less_memory}" if is_known else ""


def status_of(error: BaseException) -> int:
    """Return the exit status that an error ends with: that of the nearest class that has one."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((STATUS_OF[name] for name in names if name in STATUS_OF), EXIT_FAILED)


def rank_and_size() -> tuple[int, int]:
    """Return what torchrun's environment says; as a process alone where it makes no sense."""
    try:
        return place().rank, place().size
    except TrainingError:
        return 0, 1
