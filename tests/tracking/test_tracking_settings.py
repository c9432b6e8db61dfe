from pathlib import Path

import pytest
from omegaconf import OmegaConf

from settings.tracking import TrackingSettings

CONF = Path(__file__).parents[2] / "conf" / "tracking"


@pytest.mark.parametrize("name", ["wandb", "none"])
def test_config_file_fills_the_schema(name):
    loaded = OmegaConf.load(CONF / f"{name}.yaml")
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrackingSettings), loaded))
    assert isinstance(settings, TrackingSettings)
    assert settings == TrackingSettings(name=name, wandb=name == "wandb")
    assert settings.problems() == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"mode": "dry"}, "tracking.mode"),
        ({"project": ""}, "tracking.project"),
        ({"project": "a/b"}, "tracking.project"),
        ({"entity": ""}, "tracking.entity"),
        ({"group": "g" * 200}, "tracking.group"),
        ({"tags": ["a", "a"]}, "tracking.tags"),
        ({"tags": [""]}, "tracking.tags"),
        ({"init_timeout_seconds": 0.0}, "tracking.init_timeout_seconds"),
        ({"init_timeout_seconds": float("nan")}, "tracking.init_timeout_seconds"),
        ({"init_timeout_seconds": 1e9}, "tracking.init_timeout_seconds"),
    ],
)
def test_problems_name_the_key_and_the_value(change, key):
    problems = TrackingSettings(name="wandb", wandb=True, **change).problems()
    assert len(problems) == 1
    assert problems[0].startswith(key)


@pytest.mark.parametrize("mode", ["", "online", "offline", "disabled", "dryrun", "run"])
def test_a_mode_of_the_environment_that_wandb_has_is_taken(mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert TrackingSettings(name="wandb", wandb=True).problems() == []


def test_a_mode_of_the_environment_that_wandb_lacks_is_named_with_those_it_has(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "foo")
    (problem,) = TrackingSettings(name="wandb", wandb=True).problems()
    assert problem == (
        "the environment variable WANDB_MODE is 'foo'; set it to online, offline or disabled, or "
        "set tracking.mode"
    )
    assert TrackingSettings(name="wandb", wandb=True, mode="offline").problems() == []
    assert TrackingSettings(name="none", wandb=False).problems() == []


def test_problems_are_all_gathered():
    settings = TrackingSettings(name="x", wandb=True, mode="dry", project="", tags=[""])
    assert len(settings.problems()) == 3
