"""Training with layers that differ: resumed, recomputed, in bfloat16, compiled."""

import dataclasses

import pytest
import torch
from weights import Killed, assert_same_bits, final_tensors

from files.errors import RunError
from measuring.runs import model_config
from modeling.config import LayersConfig
from modeling.gpt import GPT
from settings.training import OptimSettings
from tests.arranged import EACH, VOCABULARY, config_of, model_of
from tracking.checkpoints import CheckpointStore
from tracking.metrics import read_metrics
from training.endurance.resumption import Identity
from training.errors import TrainingError
from training.recipe.optim import build_optimizers

WINDOWS_THAT_SHARE = LayersConfig(
    name="own", window=5, full_every=2, full_rope=False, sinks=True, share="last"
)


@pytest.fixture
def arranged_recipe(recipe):
    """Four layers with windows, sinks, dropout, and layers that read others."""
    model = dataclasses.replace(recipe.model, num_hidden_layers=4, layers=WINDOWS_THAT_SHARE)
    trainer = dataclasses.replace(recipe.trainer, max_tokens=5 * 4 * 32)
    return dataclasses.replace(recipe, model=model, trainer=trainer)


def losses(folder):
    return [record["train/loss"] for record in read_metrics(folder.metrics_path)]


@pytest.mark.slow
def test_resumed_or_recomputed_it_is_the_same_training_bit_for_bit(
    arranged_recipe, run_training, die_after, monkeypatch
):
    whole = run_training(arranged_recipe, "whole")
    recomputed = run_training(arranged_recipe, "recomputed", activation_checkpointing=True)
    assert_same_bits(final_tensors(whole), final_tensors(recomputed))
    die_after(4)  # three of them are saved
    with pytest.raises(Killed):
        run_training(arranged_recipe, "broken")
    monkeypatch.undo()
    broken = run_training(arranged_recipe, "broken")
    assert_same_bits(final_tensors(whole), final_tensors(broken))
    assert losses(whole) == losses(broken)


@pytest.mark.parametrize(("attention", "arrangement"), EACH)
def test_under_autocast_gradients_are_nearly_those_of_float32(attention, arrangement):
    torch.manual_seed(0)
    model = GPT(config_of(attention, arrangement, initializer_range=0.1))
    tokens = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model.loss(tokens, tokens.roll(-1, 1)).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for wide, narrow in zip(*found, strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow - wide).norm() < 0.1 * wide.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "arrangement", "documents"),
    [("gqa", "sinks", False), ("mla", "shared_last", True)],
)
def test_it_compiles_to_one_graph(attention, arrangement, documents):
    changes = {"intra_document_mask": documents, "end_of_document_id": 0}
    model = model_of(attention, arrangement, **changes).train()
    tokens = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    found = []
    for loss_of in (model.loss, compiled):
        model.zero_grad()
        loss_of(tokens, tokens).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_sinks_are_vectors_to_an_optimizer(name):
    model = GPT(config_of("gqa", "sinks"))
    optimizers = build_optimizers(model, OptimSettings(name=name, weight_decay=0.3))
    sinks = {id(p) for key, p in model.named_parameters() if key.endswith("sinks")}
    assert len(sinks) == 2
    [group] = [
        group
        for group in optimizers[-1].param_groups  # AdamW's
        if sinks & {id(parameter) for parameter in group["params"]}
    ]
    assert sinks <= {id(parameter) for parameter in group["params"]}
    assert group["weight_decay"] == 0.0
    assert not any(sink.any() for sink in model.parameters() if id(sink) in sinks)


def test_a_run_from_before_the_key_layers_loads_and_resumes(
    recipe, run_training, die_after, monkeypatch
):
    whole = run_training(recipe, "whole")
    state_of = Identity.state

    def before(self, progress):
        state = state_of(self, progress)
        del state["model"]["layers"]
        return state

    monkeypatch.setattr(Identity, "state", before)
    die_after(7)
    with pytest.raises(Killed):
        run_training(recipe, "old")
    monkeypatch.undo()
    windows = dataclasses.replace(recipe.model, layers=LayersConfig(window=5))
    with pytest.raises(TrainingError, match=r"other settings \(layers.window: None -> 5\)"):
        run_training(dataclasses.replace(recipe, model=windows), "old")
    old = run_training(recipe, "old")
    assert_same_bits(final_tensors(whole), final_tensors(old))

    store = CheckpointStore(old.checkpoints_path, keep_last=1)
    state = store.load(store.steps()[-1]).state["model"]
    assert model_config(state, old.path) == recipe.model
    del state["layers"]
    assert model_config(state, old.path) == recipe.model
    for broken in ("3", {"window": "3"}, {"source": [0, "0"]}, {"sinks": 1}):
        with pytest.raises(RunError, match=r"expected .* at \$.layers"):
            model_config(state | {"layers": broken}, old.path)
