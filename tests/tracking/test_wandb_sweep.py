"""Variables of wandb that name one run are not taken over by several."""

import os

import pytest

import launch.run
from launch import schemas


@pytest.mark.parametrize(
    ("arguments", "number"),
    [(["seed=0"], 1), (["-m", "seed=0"], 1), (["-m", "seed=0,1"], 2), (["-m", "seed=0,1,2"], 3)],
    ids=str,
)
def test_a_sweep_of_several_ignores_the_id_of_one_run(
    tmp_path, monkeypatch, capsys, arguments, number
):
    seen = []

    def job(config):
        seen.append([os.environ.get(name) for name in ("WANDB_RUN_ID", "WANDB_PROJECT")])

    monkeypatch.setenv("WANDB_RUN_ID", "agent-1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setattr("sys.argv", ["train_model.py", *arguments, f"runs_dir={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        launch.run.run("train", schemas.TrainConfig, job)
    assert end.value.code == 0
    assert seen == [["agent-1" if number == 1 else None, "theirs"]] * number
    said = "kvlab: WANDB_RUN_ID names one run, and this is a sweep of several: ignored\n"
    assert capsys.readouterr().err == (said if number > 1 else "")
