"""What somebody else wrote (configurations, runs, tokenizers, texts) runs and commands nothing."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import run_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(monkeypatch, capsys):
    """Start train_model.py's configuration in this process; returns status, and what it said."""

    def run(*arguments, job=lambda config: None, entry="train"):
        monkeypatch.setattr("sys.argv", [f"{entry}_model.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_config.run(entry, run_config.SCHEMAS[entry], job)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that must never come into being; a module in the working folder would make it."""
    (tmp_path / "source").write_text("copied")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "MARK"
    sys.modules.pop("evil", None)


TARGETS = {
    "os.system": "{_target_: os.system, command: 'touch MARK'}",
    "copyfile": "{_target_: shutil.copyfile, src: source, dst: MARK}",
    "write_text": "{_target_: pathlib.Path.write_text, _args_: [{_target_: pathlib.Path, _args_: "
    "[MARK]}, x]}",
    "touch": "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [MARK]}]}",
    "torch.load": "{_target_: torch.load, f: MARK.pt, weights_only: false}",
    "module": "{_target_: evil.Class}",
}
PLACES = {
    "callback": "hydra: {callbacks: {x: %s}}\n",
    "launcher": "hydra: {launcher: %s}\n",
    "sweeper": "hydra: {sweeper: %s}\n",
    "sweeper's parameter": "hydra: {sweeper: {params: {+hydra.callbacks.x: '%s'}}}\n",
    "logging": "hydra: {job_logging: {formatters: {x: {(): evil.Class}}}}  # %s\n",
    "environment": "hydra: {job: {env_set: {PYTHONSTARTUP: evil.py}}}  # %s\n",
    "own key": "optim: %s\n",
}


class Evil:
    def __reduce__(self):
        return (os.system, ("touch MARK",))


@pytest.fixture
def pickled(tmp_path):
    import torch

    torch.save(Evil(), tmp_path / "MARK.pt")


def bring(how, tmp_path, text, monkeypatch):
    """Let an experiment come from a folder of its own, or lie among kvlab's."""
    text = "# @package _global_\n" + text
    if how == "searchpath":
        (tmp_path / "brought" / "experiment").mkdir(parents=True)
        (tmp_path / "brought" / "experiment" / "mine.yaml").write_text(text)
        return [f"hydra.searchpath=[file://{tmp_path}/brought]"]
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setattr(run_config, "ROOT", tmp_path)
    return []


CASES = [
    *(("searchpath", ["-m"], place, "touch") for place in PLACES),
    *(("searchpath", ["-m"], "callback", target) for target in TARGETS if target != "touch"),
    *(("searchpath", [flag], "callback", "touch") for flag in ("--multi", "--run", "--cfg=all")),
    *(("searchpath", ["-m", "swept"], place, "touch") for place in ("callback", "logging")),
    ("searchpath", [], "callback", "touch"),
    *(("searchpath", [], "own key", target) for target in TARGETS),
    ("conf", ["-m"], "callback", "touch"),
    ("conf", [], "own key", "module"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "flags", "place", "target"), CASES)
def test_an_experiment_runs_no_code(
    how, flags, place, target, start, mark, pickled, tmp_path, monkeypatch
):  # S3
    text = PLACES[place] % TARGETS[target].replace("'", "''" if "param" in place else "'")
    arguments = [*bring(how, tmp_path, text, monkeypatch), "experiment=mine"]
    if flags[1:] == ["swept"]:
        arguments[-1], flags = "experiment=five_attentions,mine", flags[:1]
    started = []
    status, err = start(*flags, *arguments, job=started.append)
    assert not mark.exists()
    if not flags and place != "own key":
        return  # Hydra itself does not run, and nobody looks at its settings
    assert (status, started) == (2, [])
    assert err.startswith("kvlab: ")
    assert "hydra." in err or "_target_" in err


@pytest.mark.filterwarnings("ignore:Callback NoneType")
def test_without_the_check_an_experiment_would_run_code(start, mark, tmp_path, monkeypatch):
    # So that the test above can fail.
    arguments = bring("searchpath", tmp_path, PLACES["callback"] % TARGETS["touch"], monkeypatch)
    monkeypatch.setattr(run_config, "_require_plain_hydra", lambda config_name, flags: None)
    start("-m", *arguments, "experiment=mine")
    assert mark.exists()


def test_yaml_makes_no_objects(start, mark, tmp_path, monkeypatch):  # S3
    text = "optim: !!python/object/apply:os.system ['touch MARK']\n"
    status, err = start(*bring("searchpath", tmp_path, text, monkeypatch), "experiment=mine")
    assert (status, mark.exists()) == (2, False)
    assert "could not determine a constructor for the tag" in err
    assert "mine.yaml" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-m", "hydra.run.dir=../../x"], "hydra.run.dir cannot be set"),
        (["-m", "hydra.sweep.dir=/tmp/x"], "hydra.sweep.dir cannot be set"),
        (["--run", "hydra.output_subdir=../x"], "hydra.output_subdir cannot be set"),
        (["-m", "+hydra.callbacks.x._target_=evil.Class"], "hydra.callbacks.x._target_ cannot"),
        (["-m", "hydra.callbacks={x:{_target_:evil.Class}}"], "hydra.callbacks cannot be set"),
        (["-m", "hydra.launcher._target_=evil.Class"], "hydra.launcher._target_ (evil.Class)"),
        (["-m", "+hydra.launcher.x={_target_:evil.Class}"], "hydra.launcher.x._target_ (evil"),
        (["-m", "+hydra.launcher.x=[{_target_:evil.Class}]"], "hydra.launcher.x ([{'_target_'"),
        (["-m", "+optim@hydra.callbacks.x=adamw"], "sets hydra.callbacks.x."),
        (["-m", "+hydra.job.env_copy=[HOME]"], "hydra.job.env_copy cannot be set"),
        (["-m", "~hydra.callbacks"], "hydra.callbacks cannot be set"),
        (["--config-dir", "."], "--config-dir is not supported"),
        (["-cd=."], "--config-dir is not supported"),
        (["--config-path", "/tmp"], "--config-path is not supported"),
        (["--config-name", "eval"], "--config-name is not supported"),
        (["--experimental-rerun", "MARK.pt"], "--experimental-rerun is not supported"),
    ],
)
def test_the_command_line_makes_hydra_run_no_code(arguments, named, start, mark):  # S3, S4
    started = []
    status, err = start(*arguments, job=started.append)
    assert (status, started, mark.exists()) == (2, [], False)
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_launcher_and_its_settings_may_be_typed_but_come_from_no_file(
    start, tmp_path, monkeypatch
):
    seen = []
    status, err = start("-m", "hydra/launcher=basic", "seed=0,1", job=seen.append)
    assert (status, [config.seed for config in seen]) == (0, [0, 1]), err
    text = "defaults:\n  - override /hydra/sweeper: basic\nhydra: {sweep: {dir: ../../x}}\n"
    status, err = start("-m", *bring("searchpath", tmp_path, text, monkeypatch), "experiment=mine")
    assert status == 2
    assert "a configuration file sets hydra.sweep.dir" in err
