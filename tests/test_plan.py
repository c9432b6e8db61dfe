"""Experiments with arms and a sweep: which runs a command line makes of them."""

import re
import sys

import pytest

import launch.run
from launch import compose, plan, schemas
from launch.errors import ConfigError


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment of one's own; return the arguments that choose it."""

    def write(*listed, rest=""):
        folder = tmp_path / "experiment"
        folder.mkdir(exist_ok=True)
        text = "\n".join(f"  - {one}" for one in listed)
        arms = f"arms:\n{text}\n" if listed else ""
        (folder / "mine.yaml").write_text(f"# @package _global_\n{arms}{rest}")
        return [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]

    return write


LISTED = (
    "attention=mha",
    "attention=gqa",
    "attention=gqa layers=window_full layers.window=32",
    "attention=mla layers=window_full",
)
SEEDS = "sweep:\n  seed: 0,1\n"


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
    found = plan.planned("train", [*chosen, *typed]).runs
    assert all(run[:2] == chosen for run in found)
    runs = [sorted(run[2:]) for run in found]
    seeds = ["seed=0", "seed=1"] if "seed=0,1" in typed else [None]
    arms = [LISTED[idx].split() for idx in kept]
    assert runs == [sorted([*filter(None, [seed]), *arm]) for arm in arms for seed in seeds]


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
    whole = compose.composed("train", [], with_hydra=True)
    whole.arms = list(listed)
    # In a folder of the user's own, Hydra alone knows which choices and keys there are.
    monkeypatch.setattr(plan, "composed", lambda *given, **options: whole)
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan.planned("train", ["experiment=mine", *typed])


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

    chosen = experiment(*LISTED, rest="run_name: ${model.attention.name}${seed}\n" + SEEDS)
    assert run("-m", *chosen, "layers=window_full") == 0
    assert made == [("gqa0", 32), ("gqa1", 32), ("mla0", 64), ("mla1", 64)]
    out = capsys.readouterr().out
    assert "run 1 of 4: seed=0 attention=gqa layers.window=32\n" in out  # what differs
    assert run(*chosen, "attention=mla", "seed=1") == 0
    assert made[4:] == [("mla1", 64)]
    assert run(*chosen, "seed=1") == 2
    assert "is a sweep of 4 runs: add -m" in capsys.readouterr().err


def test_an_experiment_with_hydras_sweep_is_answered_with_the_key_of_today(experiment):
    chosen = experiment("attention=mla", rest="hydra: {sweeper: {params: {seed: '0,1'}}}\n")
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params is now the key sweep"):
        plan.planned("train", chosen)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("sweep: {attention: 'mla,mlaa'}\n", "there is no attention 'mlaa'"),
        ("sweep: {seeds: '0,1'}\n", "there is no key 'seeds'; did you mean 'seed'"),
        ("sweep: {seed: 'interval(0,1)'}\n", r"seed: interval\(\) has no end of values"),
        ("sweep: {hydra/launcher: submitit_slurm}\n", "hydra/launcher cannot be set"),
        ("sweep: {experiment: five_attentions}\n", "chooses no other experiment"),
        ("sweep: 5\n", "sweep must hold keys, such as sweep: {seed: 0,1,2}"),
        ("sweep: [seed]\n", "sweep must hold keys"),
        ("sweep: {seed: [0, 1]}\n", "values as they would be typed, such as seed: a,b"),
        ("arms: 5\n", r"arms must be a list, such as arms: \[attention=mla\]"),
        ("arms: ['experiment=five_attentions']\n", "chooses no other experiment"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(rest, message, experiment, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_model.py", "-m", *experiment(rest=rest)])
    with pytest.raises(SystemExit) as end:
        launch.run.run("train", schemas.TrainConfig, lambda config: None)
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)
