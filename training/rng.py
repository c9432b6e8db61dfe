"""The random state that training depends on."""

import torch
from torch import Tensor


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of PyTorch's generators; nothing else is random in a training step."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_tensors(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `rng_tensors` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
