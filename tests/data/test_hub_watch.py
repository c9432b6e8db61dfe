"""What a watched call may do without the Hub."""

import os
import signal
import threading
import time

import pytest

import data.hub.watch
from data.hub.watch import watched


def test_work_on_this_machine_is_no_silence(monkeypatch):
    monkeypatch.setattr(data.hub.watch, "SILENCE_S", 0.1)
    assert watched("dataset 'a/b'", lambda: time.sleep(0.8) or 5, "other") == 5


def test_errors_of_the_call_pass_through():
    with pytest.raises(ZeroDivisionError):
        watched("dataset 'a/b'", lambda: 1 // 0, "other")
    assert watched("dataset 'a/b'", lambda: 5, "other") == 5


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a shell ignores it in what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_wait():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        watched("dataset 'a/b'", lambda: time.sleep(3), "other")
    assert time.monotonic() - start < 2
