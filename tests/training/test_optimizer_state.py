import torch
from torch import nn

from training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from training.settings import OptimSettings


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    return model, build_optimizer(model, OptimSettings())


def step(model, optimizer):
    model(torch.arange(6.0).view(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_weight_decay_is_on_matrices_only():
    model, optimizer = make()
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model[0].weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_restored_state_continues_bit_for_bit():
    model, optimizer = make()
    step(model, optimizer)
    saved = {key: t.clone() for key, t in optimizer_tensors(model, optimizer).items()}
    weights = {key: t.clone() for key, t in model.state_dict().items()}
    step(model, optimizer)

    other, other_optimizer = make()
    other.load_state_dict(weights)
    load_optimizer_tensors(other, other_optimizer, saved)
    step(other, other_optimizer)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
