"""Continue in an environment that has what kvlab needs, or say in one line how to get one.

An entry point calls `ensure()` before it imports anything that is not in the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# The modules of requirements.txt (a test compares the two).
PACKAGES = (
    *("torch", "numpy", "datasets", "huggingface_hub", "transformers", "tokenizers", "safetensors"),
    *("hydra", "omegaconf", "wandb", "filelock", "loky", "msgspec", "rich", "tqdm"),
    *("matplotlib", "scipy", "jinja2"),
)
_ROOT = Path(__file__).resolve().parents[1]
_VENV = _ROOT / ".venv"
_TRIED = "KVLAB_TRIED_VENV"  # set for one start, so that .venv is tried once and cannot loop


def ensure() -> None:
    """Return where kvlab can run; else continue in `.venv`, or exit with status 2 and one line.

    `prepare_for_use.sh` makes `.venv` in the project where the system's package manager owns
    `python`. Also sets the environment variable PROJECT_ROOT, which the configuration reads, and
    keeps PyTorch's profiler quiet.
    """
    _open_closed_streams()
    os.environ["PROJECT_ROOT"] = str(_ROOT)
    # Or PyTorch's profiler announces itself on stderr; it reads this when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    tried = os.environ.pop(_TRIED, None)
    problem = _problem()
    if problem is None:
        return
    python = _VENV / "bin" / "python"
    arguments = getattr(sys, "orig_argv", None)  # knows `python -m`; new in Python 3.10
    if arguments and not tried and os.name == "posix" and python.exists():
        os.environ[_TRIED] = "1"
        os.execv(python, [str(python), *arguments[1:]])
    print(f"kvlab: {problem}", file=sys.stderr)
    raise SystemExit(2)


def _open_closed_streams() -> None:
    """Let stdin, stdout and stderr that were closed (`>&-`) lead to nowhere.

    Python has None in their place; and the next file that is opened, a checkpoint say, would get
    their number, and what a library prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free: this one, since those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _problem() -> str | None:
    """Say why kvlab cannot run in this Python, or None."""
    if os.name == "nt":
        return "Linux or macOS is needed; on Windows use WSL, the Windows Subsystem for Linux"
    version = sys.version_info[:2]
    if not (3, 11) <= version <= (3, 13):
        return (
            f"Python 3.11 to 3.13 is needed and {sys.executable} is {version[0]}.{version[1]};"
            " activate an environment that has it, then run: sh prepare_for_use.sh"
        )
    for name in PACKAGES:
        if not _is_installed(name):
            return f"{name} is not installed for {sys.executable}; run: sh prepare_for_use.sh"
    return None


def _is_installed(name: str) -> bool:
    """Look for a module without importing it."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    # A folder that merely has the name, such as a run's wandb/, has a spec without an origin.
    return spec is not None and spec.origin is not None
