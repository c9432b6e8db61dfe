"""The optimizers of a model, and their state as named tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from settings.training import OptimSettings
from training.machine.hardware import has_native_bfloat16
from training.recipe.muon import Muon


def build_optimizers(
    model: nn.Module, settings: OptimSettings, autocast_dtype: torch.dtype | None = None
) -> list[torch.optim.Optimizer]:
    """Build AdamW for all parameters, or Muon for the blocks' matrices and AdamW for the rest.

    All groups share one learning rate. Weight decay goes by role: matrices, embeddings (the output
    projection is one), and none on norms and biases.

    Args:
        model: Its `nn.Embedding` modules and `lm_head` count as embeddings.
        settings: Name and rates, checked.
        autocast_dtype: Of the training; None for float32. Muon computes in it, too, unless it would
            be emulated.
    """
    roles = parameters_by_role(model)
    decays = {
        "matrices": settings.weight_decay,
        "embeddings": settings.embedding_weight_decay,
        "vectors": 0.0,
    }
    groups = {
        role: {"params": parameters, "weight_decay": decays[role]}
        for role, parameters in roles.items()
        if parameters
    }
    optimizers: list[torch.optim.Optimizer] = []
    if settings.name == "muon":
        device = next(model.parameters()).device
        optimizers.append(
            Muon(
                [groups.pop("matrices")],
                lr=settings.learning_rate,
                momentum=settings.momentum,
                dtype=muon_dtype(autocast_dtype, device),
            )
        )
    optimizers.append(
        torch.optim.AdamW(
            list(groups.values()),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
    )
    return optimizers


def muon_dtype(autocast_dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return what Muon orthogonalises in: the training's own precision, unless it is emulated."""
    is_narrow = autocast_dtype is not None and has_native_bfloat16(device)
    return torch.bfloat16 if is_narrow else torch.float32


def parameters_by_role(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the model's parameters, each once, as matrices, embeddings and vectors."""
    embedding_names = {
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    } | {"lm_head"}
    roles: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] in embedding_names:
            roles["embeddings"].append(parameter)
        else:
            roles["matrices" if parameter.dim() >= 2 else "vectors"].append(parameter)
    return roles


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give every group of every optimizer the learning rate of the coming step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Return the optimizers' state as `<parameter name>/<key>` -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        # Asking for an absent one would add it.
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    owner = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        owner[parameters[name]].state[parameters[name]][key] = value
