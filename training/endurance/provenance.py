"""What a run's numbers depend on beyond its configuration."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from settings.training import TrainerSettings
from training.machine.setup import Machine
from training.recipe.optim import muon_dtype

PACKAGES = ("torch", "numpy", "tokenizers", "datasets", "safetensors")


@dataclass(frozen=True)
class Provenance:
    """What a run's numbers depend on beyond its recipe and its data: machine and software."""

    numerics: dict[str, str | int | bool]
    versions: dict[str, str]
    git_commit: str | None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in a folder, with `+changes` if files differ.

    None where the folder is not the root of a repository: one around it is somebody's, whose
    commits say nothing of this folder.
    """
    # GIT_DIR and the like name another repository, in a hook for example.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.removesuffix("\n")

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance_of(machine: Machine, trainer: TrainerSettings, num_ranks: int) -> Provenance:
    """Return the provenance of what is trained here and now."""
    device, is_cuda = machine.device, machine.device.type == "cuda"
    # What has to be equal for a resumed run to repeat another bit for bit.
    numerics: dict[str, str | int | bool] = {
        "torch": str(torch.__version__),
        "precision": str(machine.dtype).removeprefix("torch."),
        "compile": trainer.compile,
        "deterministic": trainer.deterministic,
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "num_threads": torch.get_num_threads(),
        # Of a training in bfloat16 Muon computes in it, too, but where it is emulated.
        "native_bfloat16": muon_dtype(machine.autocast_dtype, device) == torch.bfloat16,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # A run may be resumed with another one, if the sequences per step stay the same.
        "micro_batch_size": trainer.micro_batch_size,
        "ranks": num_ranks,
        "parallelism": trainer.parallelism if num_ranks > 1 else "none",
    }
    return Provenance(numerics, versions(), git_commit(Path(__file__).parents[2]))
