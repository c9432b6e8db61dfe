import dataclasses

import pytest

from launch import compose, schemas
from tracking.metrics import read_metrics


def preset():
    config = compose.composed("train", ["debug=overfit"])
    return compose.checked(config, schemas.TrainConfig)


@pytest.mark.slow
def test_the_preset_memorizes_one_batch(recipe, prepared, run_training):
    config = preset()
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(config.model, vocab_size=prepared.vocab_size),
        optim=config.optim,
        schedule=config.schedule,
        trainer=dataclasses.replace(config.trainer, device="cpu", precision="float32"),
    )
    assert config.trainer.overfit_batches == 1
    learnt = run_training(recipe, "overfit")
    assert read_metrics(learnt.metrics_path)[-1]["train/loss"] < 0.1
    assert learnt.read_summary()["overfit_batches"] == 1
    # Of all the data so few steps of this model learn less.
    usual = run_training(recipe, "usual", overfit_batches=None)
    assert read_metrics(usual.metrics_path)[-1]["train/loss"] > 0.1
    assert usual.read_summary()["overfit_batches"] is None
