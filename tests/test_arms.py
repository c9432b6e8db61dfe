"""Experiments that list their arms: which runs a command line makes of them."""

import re
import sys

import pytest

import launch.run
from launch import arms, compose, schemas
from launch.errors import ConfigError


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment of one's own; return the arguments that choose it."""

    def write(*listed, rest=""):
        folder = tmp_path / "experiment"
        folder.mkdir(exist_ok=True)
        text = "\n".join(f"  - {one}" for one in listed)
        (folder / "mine.yaml").write_text(f"# @package _global_\narms:\n{text}\n{rest}")
        return [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]

    compose.register()
    return write


LISTED = (
    "attention=mha",
    "attention=gqa",
    "attention=gqa layers=window_full layers.window=32",
    "attention=mla layers=window_full",
)
SEEDS = "hydra:\n  sweeper:\n    params:\n      seed: 0,1\n"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ([], [0, 1, 2, 3]),
        (["attention=gqa"], [1, 2]),
        (["attention=mla,mha", "seed=0,1"], [0, 3]),
        (["layers=uniform"], [0, 1]),  # by default
        (["layers=window_full"], [2, 3]),
        (["layers.window=32"], [2]),
        (["attention=gqa", "layers=uniform"], [1]),
    ],
)
def test_typed_values_choose_among_the_arms(typed, kept, experiment):
    chosen = experiment(*LISTED)
    found = arms.commands("train", [*chosen, *typed])
    own = [one for one in typed if one.startswith("seed")]
    assert [one[2 + len(own) :] for one in found] == [LISTED[idx].split() for idx in kept]
    assert all(one[: 2 + len(own)] == [*reversed(chosen), *own] for one in found)


@pytest.mark.parametrize(
    ("listed", "typed", "message"),
    [
        (
            LISTED,
            ["attention=mqa"],
            "has no arm with attention=mqa; it has attention=mha; at",
        ),
        (LISTED, ["layers=window_full", "attention=mha"], "no arm with layers=window_full atten"),
        (["attention=mlaa"], [], "an arm of experiment=mine: there is no attention 'mlaa'; did"),
        (["attention"], [], "an arm of experiment=mine: 'attention' needs a value"),
        (['attention="mla'], [], "experiment=mine: an arm cannot be read: No closing quotation"),
        (["layres=window"], [], "an arm of experiment=mine: there is no key 'layres'; did you m"),
    ],
)
def test_arms_that_cannot_be_are_refused(listed, typed, message, monkeypatch):
    compose.register()
    whole = compose.composed("train", [], with_hydra=True)
    whole.arms = list(listed)
    # In a folder of the user's own, Hydra alone knows which choices and keys there are.
    monkeypatch.setattr(arms, "composed", lambda *given, **options: whole)
    with pytest.raises(ConfigError, match=re.escape(message)):
        arms.commands("train", ["experiment=mine", *typed])


def test_each_arm_is_made_with_each_seed_and_arms_are_not_recorded(experiment, monkeypatch, capsys):
    made = []

    def job(config):
        assert not hasattr(config, "arms")
        made.append((config.run_name.removesuffix("-nano-python_stdlib"), config.layers.window))

    def run(*typed):
        monkeypatch.setattr(sys, "argv", ["train_model.py", *typed])
        with pytest.raises(SystemExit) as end:
            launch.run.run("train", schemas.TrainConfig, job)
        return end.value.code

    # Of a user's own folder, require_plain_hydra and Hydra both see every arm.
    chosen = experiment(*LISTED, rest="run_name: ${model.attention.name}${seed}\n" + SEEDS)
    assert run("-m", *chosen, "layers=window_full") == 0
    assert made == [("gqa0", 32), ("gqa1", 32), ("mla0", 64), ("mla1", 64)]
    out = capsys.readouterr().out
    assert "run 1 of 4: seed=0 attention=gqa layers.window=32\n" in out  # what differs
    assert run(*chosen, "attention=mla", "seed=1") == 0
    assert made[4:] == [("mla1", 64)]
    assert run(*chosen, "seed=1") == 2
    assert "is a sweep of 4 runs: add -m" in capsys.readouterr().err
