"""A training that begins with weights that are there."""

import dataclasses

import pytest
import torch
from weights import Killed, assert_same_bits, final_tensors

from data.batches import TrainingWindows
from modeling.gpt import GPT
from tracking.metrics import read_metrics


@pytest.fixture
def initial(recipe):
    """Weights that no seed of the recipe gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        return GPT(dataclasses.replace(recipe.model, initializer_range=0.3)).state_dict()


def without_dropout(recipe):
    attention = recipe.model.attention | {"attention_dropout": 0.0}
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, attention=attention))


def first_loss(folder):
    return next(r["train/loss"] for r in read_metrics(folder.metrics_path) if "train/loss" in r)


def test_the_first_loss_is_that_of_the_weights_it_was_given(
    recipe, run_training, prepared, initial
):
    recipe = without_dropout(recipe)
    folder = run_training(recipe, "given", initial=lambda: initial, log_every_steps=1)
    windows = TrainingWindows(prepared.training_streams(), 32, recipe.seed)
    inputs, targets = windows.batch(0, 4)
    model = GPT(recipe.model)
    model.load_state_dict(initial)
    expected = float(model.loss(inputs, targets).detach())
    # Two passes instead of one batch: some roundings of 2**-24.
    assert first_loss(folder) == pytest.approx(expected, rel=1e-5)
    drawn = run_training(recipe, "drawn", log_every_steps=1)
    assert abs(first_loss(drawn) - expected) > 0.1


def test_a_resumed_run_keeps_what_it_learned(recipe, run_training, die_after, monkeypatch, initial):
    whole = run_training(recipe, "whole", initial=lambda: initial)
    die_after(4)  # the step after the checkpoint of the third
    with pytest.raises(Killed):
        run_training(recipe, "cut", initial=lambda: initial)
    monkeypatch.undo()
    cut = run_training(recipe, "cut", initial=lambda: initial)
    assert_same_bits(final_tensors(cut), final_tensors(whole))
