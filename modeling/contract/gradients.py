"""Promises about how attention learns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from modeling.attention import AttentionConfig
from modeling.contract.common import FELT, LENGTH, Finding, build, states


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
