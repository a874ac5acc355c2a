"""Signals that end a command wait until what must not be cut short is over."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from clear_ray.cluster.uninterrupted import uninterrupted


def interrupt(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_comes_when_it_may(times: int) -> None:
    done = []

    def import_something() -> None:
        with uninterrupted():
            for _ in range(times):
                interrupt(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        import_something()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT)


def test_a_signal_finds_the_handler_that_it_had() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with uninterrupted():
            interrupt(signal.SIGTERM)
            assert not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            interrupt(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_is_not_lost_and_another_thread_holds_nothing() -> None:
    with pytest.raises(ValueError, match="inside"), uninterrupted():
        raise ValueError("inside")
    before = signal.getsignal(signal.SIGINT)
    held = []

    def work() -> None:
        with uninterrupted():
            held.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert held == [before]
