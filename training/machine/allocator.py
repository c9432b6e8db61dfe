"""glibc's memory allocator, set to keep what is freed: a training step asks for the same again."""

import ctypes
import os
import sys

_PAD_BYTES = 512 * 2**20
# <malloc.h>: parameter, value.
_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX: no mappings of their own for large blocks, returned when freed
    (-1, -1),  # M_TRIM_THRESHOLD: never return the top of the heap
    (-2, _PAD_BYTES),  # M_TOP_PAD: grow the heap in steps of this size
)
# A user who sets these has chosen already.
_USERS_CHOICE = ("MALLOC_", "GLIBC_TUNABLES")


def tune() -> str:
    """Keep freed memory for this process instead of returning it to the system.

    By default glibc maps each large tensor again and unmaps it when it is freed, so that a training
    step on a CPU faults in every page of its activations again. The memory that the process holds
    stays at its peak instead.

    Returns:
        What was done, in words for the user.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return "memory allocator: left as it is, since this is not glibc's"
    chosen = sorted(name for name in os.environ if name.startswith(_USERS_CHOICE))
    if chosen:
        return f"memory allocator: left as {', '.join(chosen)} says"
    if not all(libc.mallopt(parameter, value) for parameter, value in _SETTINGS):
        return "memory allocator: glibc refused the settings; left as it is"
    return "memory allocator: freed memory is kept (trainer.tune_allocator=false to leave it alone)"
