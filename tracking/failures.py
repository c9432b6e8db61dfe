"""Errors of the machine: no memory left, another rank gone. Not all have a class in PyTorch."""

import torch
import torch.distributed


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is used up, on a GPU or a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def is_lost_rank(error: BaseException) -> bool:
    """Return whether the connection to another rank broke, which is no error of this one."""
    # Absent where PyTorch was built without its distributed part.
    known = getattr(torch.distributed, "DistError", None)
    if known is not None and isinstance(error, known):
        return True
    # gloo has no exception of its own.
    signs = ("gloo/", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
