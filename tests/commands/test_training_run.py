"""What a run's training is handed, and what is handed on to wandb."""

from commands import training_run
from launch.compose import checked, composed
from launch.schemas import TrainConfig
from tracking.configuration import flat, read_configuration
from training.ranks.joining import alone


def test_wandb_gets_the_configuration_that_the_run_records(prepared, folder_of, monkeypatch):
    given = {}

    class Mirror:
        def __init__(self, tracking, folder, name, config, *_, **__):
            given.update(config)

        def finish(self, exit_code):
            given["exit_code"] = exit_code

    # No training: all that this asks is what it begins with.
    monkeypatch.setattr(training_run, "WandbMirror", Mirror)
    monkeypatch.setattr(training_run, "train", lambda *_: {})
    config = checked(composed("train", ["attention=mla", "layers=window_full"]), TrainConfig)
    folder = folder_of("one")
    training_run.train_run(folder, config, prepared, alone("cpu"), lambda _: None)
    assert given.pop("exit_code") == 0
    assert flat(given) == read_configuration(folder.config_path)
    assert given["layers"]["window"] > 0
