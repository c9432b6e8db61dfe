"""The random state that training depends on."""

import torch
from torch import Tensor


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of PyTorch's generators; nothing else is random in a training step."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def use_stream_of_rank(seed: int, rank: int) -> None:
    """Give each rank random numbers of its own; rank 0 keeps those it has."""
    if rank > 0:
        # A number far from other seeds, as ranks and seeds are small.
        torch.manual_seed((seed + rank * 0x9E3779B97F4A7C15) % 2**63)


def set_rng_tensors(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `rng_tensors` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
