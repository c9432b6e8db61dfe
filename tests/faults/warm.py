"""Entry points in processes that need no seconds of imports: forked from one that has done them.

A process that is to be killed at a random moment would otherwise die in `import torch` most times.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOADED = [
    *("torch", "torch.distributed", "safetensors.torch", "numpy", "filelock", "tqdm", "hydra"),
    *("datasets", "tokenizers", "loky", "launch.run", "data.pipeline", "training.loop"),
    *("training.recipe.budget_sheet", "training.ranks.joining", "training.summary"),
    "tracking.wandb_mirror",
]


def start(folder, *arguments, module=None, environment=None, breaking=None):
    """Start `python train_model.py arguments`, or `python -m module arguments`, in a folder.

    Args:
        folder: Working directory, and where `output` collects stdout and stderr.
        arguments: The command's.
        module: Instead of train_model.py.
        environment: Variables added to those there are.
        breaking: Name of a function of `warm_faults`, called before the command, to break it.
    """
    # Of the process that the others are forked from, and so of all of them.
    with pytest_environment():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(
            target=_act, args=(str(folder), arguments, module, environment or {}, breaking)
        )
        process.start()
    return process


@contextlib.contextmanager
def pytest_environment():
    """One thread each, and the folders that pytest imports from."""
    changed = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ranks_of_one_training(folder, ranks, *arguments):
    """Start the ranks of one training as torchrun does, and keep their key-value store."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        **{"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    yield [
        start(folder, *arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]


def _act(folder, arguments, module, environment, breaking):
    os.setsid()  # Ctrl-C in pytest's terminal is not for this one
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (multiprocessing closed it)
    os.environ.update(environment)
    if breaking:
        import warm_faults

        getattr(warm_faults, breaking)()
    name = module or "train_model"
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
