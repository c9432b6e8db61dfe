import subprocess
import sys
from pathlib import Path

import pytest

from training.machine import allocator

ROOT = Path(__file__).resolve().parent.parent.parent

# Page faults of five blocks of 64 MB, each filled and freed.
FAULTS = """
import ctypes, resource, sys
from training.machine.allocator import tune
if sys.argv[1] == "tuned":
    print(tune())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def fill():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode, **environment):
    command = [sys.executable, "-c", FAULTS, mode]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    *said, faults = result.stdout.splitlines()
    return " ".join(said), int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    # At least one fault for 2 MB where the system has huge pages, and for 4 KiB where not.
    assert run("default")[1] >= 5 * 32
    said, faults = run("tuned")
    assert "trainer.tune_allocator=false" in said
    assert faults < 5 * 32 / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_the_user_set_is_left_alone():
    said, faults = run("tuned", MALLOC_MMAP_MAX_="65536")
    assert said == "memory allocator: left as MALLOC_MMAP_MAX_ says"
    assert faults >= 5 * 32


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert "left as it is" in allocator.tune()
