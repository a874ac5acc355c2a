"""Holds Ctrl-C back while modules are imported beside a thread that imports some, too.

An interrupt that comes amid an import may leave its lock taken. The other thread then waits for that module for ever, and the
command for the thread: it hangs, however often Ctrl-C is pressed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that end a command; what came meanwhile comes at the end. One that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)

    before: dict[signal.Signals, Callable[..., Any]] = {}
    for held in _HELD:
        handler = signal.getsignal(held)
        if callable(handler):
            before[held] = handler
            signal.signal(held, hold)
    try:
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        for number in came[:1]:
            before[signal.Signals(number)](number, None)
