"""What tests of whole processes share."""

import threading
import time

import pytest


def wait_for_step(process, metrics, step):
    """Wait until a training that was started has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"ended before step {step}: {process.stderr.read()}")
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached")


def in_threads(work, numbers):
    """Call `work` with each number in a thread of its own, as ranks do, and wait for all."""
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
