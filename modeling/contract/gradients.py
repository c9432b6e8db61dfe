"""Promises about how attention learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from modeling.attention import AttentionConfig, ForwardPass, SoftmaxAttentionConfig
from modeling.contract.common import FELT, LENGTH, Finding, build, near, randomise, states
from modeling.contract.placements import Reading, reading


def gradient(config: AttentionConfig) -> Iterator[Finding]:
    """The gradient reaches every parameter and the input."""
    module = build(config).train()
    x = states(config).requires_grad_()
    module(x, torch.arange(LENGTH)).square().sum().backward()
    tensors = {"x": x, **dict(module.named_parameters())}
    sizes = {name: 0.0 if t.grad is None else float(t.grad.norm()) for name, t in tensors.items()}
    name = min(sizes, key=lambda key: sizes[key])
    measured = f"smallest of {len(sizes)} norms: {sizes[name]:.1e} of {name}"
    hint = f"whether forward uses {name}, and no detach or no_grad lies between"
    yield Finding(sizes[name] > FELT, measured, hint)


def gradient_check(config: AttentionConfig) -> Iterator[Finding]:
    """The gradient is that of finite differences, in float64."""
    module, x = build(config), states(config, batch=2)[:, :4].requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def forward(x: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, state, (x, torch.arange(4)))

    hint = "a custom backward, or an operation in forward that autograd does not see"
    try:
        gradcheck(forward, (x, *module.parameters()), fast_mode=True, atol=1e-4)
    except GradcheckError as error:
        yield Finding(False, f"gradcheck: {str(error).splitlines()[0]}", hint)
    else:
        count = len(names)
        yield Finding(True, f"gradcheck agrees for x and {count} parameters, within 1e-4", hint)


def sharing(config: AttentionConfig) -> Iterator[Finding]:
    """Keys and values that other layers read get their gradient from every one of them."""
    if not isinstance(config, SoftmaxAttentionConfig):
        return
    reader = dataclasses.replace(config, kv_source_layer=0)
    module, x = Reading(reading(config, reader)), states(config)
    randomise(module).double().train()
    names = dict(module.reader.named_parameters())
    kept = {n: p for n, p in module.producer.named_parameters() if n not in names}
    shared, positions = ForwardPass(read_layers={0}), torch.arange(LENGTH)
    outputs = [module.producer(x, positions, forward_pass=shared)]
    outputs += [module.reader(x, positions, forward_pass=shared) for _ in range(2)]
    losses = [output.square().sum() for output in outputs]
    each = [torch.autograd.grad(loss, list(kept.values()), retain_graph=True) for loss in losses]
    together = torch.autograd.grad(sum(losses, x.new_zeros(())), list(kept.values()))
    hint = "what the layer keeps for others: no detach, and the tensors that it reads itself"
    for use, found in zip(("own", "first other", "second other"), each, strict=True):
        sizes = {name: float(g.norm()) for name, g in zip(kept, found, strict=True)}
        name = min(sizes, key=lambda key: sizes[key])
        measured = f"{use} use: smallest of {len(sizes)} norms {sizes[name]:.1e} of {name}"
        yield Finding(sizes[name] > FELT, measured, hint)
    for name, total, *parts in zip(kept, together, *each, strict=True):
        yield near(total, torch.stack(parts).sum(0), f"{name}, sum over the uses", hint)


def initialisation(config: AttentionConfig) -> Iterator[Finding]:
    """The projections into the residual stream are named, for depth-scaled initialisation."""
    module = config.build()
    named = {id(child): name for name, child in module.named_modules()}
    found = module.residual_projections()
    names = [named.get(id(child), "one that is no part of the module") for child in found]
    widths = [getattr(child, "out_features", 0) for child in found]
    passed = bool(found) and all(id(child) in named for child in found)
    passed = passed and all(width == config.hidden_size for width in widths)
    measured = f"{', '.join(names) or 'none'}, of width {', '.join(map(str, widths)) or '-'}"
    yield Finding(passed, f"{measured}, expected {config.hidden_size}", "residual_projections")
