"""What all tests share: no network, no wandb, and a corpus small enough to train on in seconds."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.machine.signals import SIGNALS

# Before any test imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other worker has the other core

# A shell may start this where Ctrl-C and a closing terminal are ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

LINE = "def f{0}(x):\n    return x + {0}  # the {0}. function\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """Take signals again after an entry point that was called here: it takes none as it ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if handler is not None:  # else it is not Python's
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files, 24 for training and 4 for validation."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(28):
        split = "validation" if number >= 24 else "train"
        text = "".join(LINE.format(number * 50 + line) for line in range(50))
        (folder / f"{split}-{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The corpus above, prepared with a byte-level BPE of 300 tokens."""
    from data.pipeline import prepare
    from settings.data import DataSettings, TokenizerSettings

    data = DataSettings(
        name="tiny",
        source="local",
        path=str(corpus_folder),
        prepared_dir=str(tmp_path_factory.mktemp("prepared")),
    )
    return prepare(data, TokenizerSettings(name="bpe", kind="bpe", vocab_size=300), lambda _: None)


@pytest.fixture(scope="session")
def tiny_data(corpus_folder: Path, prepared) -> list[str]:
    """What chooses that corpus, and where it is prepared, on a command line."""
    return [
        *("data=local", f"data.path={corpus_folder}", "data.name=tiny"),
        *("tokenizer.vocab_size=300", f"data.prepared_dir={prepared.folder.parent}"),
    ]


@pytest.fixture
def folder_of(tmp_path: Path):
    """The folder of a run by its name."""
    from tracking.run_folder import RunFolder

    return lambda name: RunFolder(tmp_path / "runs", name)


@pytest.fixture
def run_training(prepared, folder_of):
    """Train a recipe in a folder of its own; returns the folder."""
    from settings.tracking import TrackingSettings
    from tracking.wandb_mirror import WandbMirror
    from training.loop import train

    def run(recipe, name, say=lambda _: None, wandb=False, initial=None, **trainer_changes):
        changed = dataclasses.replace(recipe.trainer, **trainer_changes)
        folder = folder_of(name)
        folder.create()
        tracking = TrackingSettings(name="t", wandb=wandb, mode="offline" if wandb else "disabled")
        mirror = WandbMirror(tracking, folder.path, name, {}, say)
        try:
            changed = dataclasses.replace(recipe, trainer=changed)
            train(changed, prepared, folder, mirror, say, initial=initial)
        finally:
            mirror.finish()
        return folder

    return run
