"""Signals that reach the launcher and the agents of other nodes: one event is taken once."""

import os
import selectors
import signal

import pytest

from disttrain.launcher import signals
from disttrain.launcher.signals import Signals


@pytest.fixture
def taken():
    return []


@pytest.mark.parametrize("agents_first", [True, False])
def test_a_signal_to_the_launcher_and_to_agents_is_one_event(taken, agents_first):
    both = Signals(taken.append)

    def sent():
        both.note(signal.SIGTERM)
        both.take_noted()

    steps = [lambda: both.take_of_agents(signal.SIGTERM), sent]
    for step in steps if agents_first else steps[::-1]:
        step()
    assert taken == [signal.SIGTERM]

    sent()
    assert taken == [signal.SIGTERM, signal.SIGTERM]


def test_a_signal_long_after_that_of_the_agents_is_another(taken, monkeypatch):
    both = Signals(taken.append)
    both.take_of_agents(signal.SIGTERM)
    monkeypatch.setattr(signals, "ONE_EVENT", 0.0)
    both.note(signal.SIGTERM)
    both.take_noted()

    assert taken == [signal.SIGTERM, signal.SIGTERM]


def test_signals_are_taken_by_the_main_loop_and_not_after_it(taken):
    was = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as under nohup: it stays ignored
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)]
    try:
        with selectors.DefaultSelector() as selector:
            restore = Signals(taken.append).catch(selector)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert taken == []
            for key, _ in selector.select(10):
                key.data()
            restore()
    finally:
        signal.signal(signal.SIGUSR1, was)

    assert taken == [signal.SIGTERM, signal.SIGHUP]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)] == before
