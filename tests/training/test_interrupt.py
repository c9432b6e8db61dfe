"""Signals around the training loop."""

import os
import signal
from collections.abc import Iterator

import pytest

from training.endurance.interrupt import InterruptRequest
from training.machine.signals import SIGNALS


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever another test left
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_the_handlers_come_back(number):
    before = [signal.getsignal(number) for number in SIGNALS]
    with InterruptRequest() as request:
        assert request.name is None
        os.kill(os.getpid(), number)
        assert request.name == number.name
        for later in SIGNALS:
            if later != signal.SIGINT:  # schedulers ask twice
                os.kill(os.getpid(), later)
        assert request.name == number.name
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_hangup_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with InterruptRequest() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.name is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_a_launcher_does_at_a_signal_stays_its_own():
    seen = []
    signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))  # as submitit does
    with InterruptRequest() as request:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert (request.name, seen) == (None, [signal.SIGUSR2])


def test_an_error_gives_the_handlers_back_to_a_process_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), InterruptRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def fail(asked_before: bool) -> None:
    if asked_before:
        os.kill(os.getpid(), signal.SIGTERM)
    raise ZeroDivisionError


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_rank_with_an_error_reports_it_though_torchrun_asks_it_to_end(asked_before):
    with pytest.raises(ZeroDivisionError), InterruptRequest(is_one_of_many=True):
        fail(asked_before)
    os.kill(os.getpid(), signal.SIGTERM)  # would end the tests


def test_one_of_many_without_an_error_gives_the_handlers_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with InterruptRequest(is_one_of_many=True):
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
