"""What tests of whole processes share."""

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
