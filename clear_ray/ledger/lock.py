"""One run at a time in a run folder: what holds it, and how long a killed run may go on holding it."""

from __future__ import annotations

import fcntl
import hashlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from clear_ray.errors import ResumeError
from clear_ray.storage import Folder

Held = TypeVar("Held")

_PATIENCE_SECONDS = 10.0
"""How long the actors of a driver that was killed may outlive it."""

_POLL_SECONDS = 0.1


@contextmanager
def alone_with(folder: Folder) -> Iterator[None]:
    """Let one driver at a time, of this machine, take a run folder in: there is no journal to lock before it exists.

    Held by an address that ends with the process and leaves no file behind. The market's name in its cluster and, on disks,
    its lock on the journal are for the rest: other machines, and a market that outlives its driver.

    Raises:
        ResumeError: Another driver goes on with it.
    """
    if sys.platform != "linux":
        yield
        return
    name = hashlib.sha256(folder.identity.encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as held:
        once_free(partial(held.bind, f"\0clear_ray {name}"), OSError, folder)
        yield


def refuse_in_use(folder: Folder) -> None:
    """Raise ResumeError while a driver of this machine holds a run folder; without holding it for a moment."""
    name = hashlib.sha256(folder.identity.encode()).hexdigest()
    try:
        held = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system: the run itself will tell
        return
    if f"@clear_ray {name}" in held:
        raise in_use(folder)


def lock_file(descriptor: int, folder: Folder) -> None:
    """Take the lock of a journal's file, which is let go when the file is closed or its process ends."""
    once_free(partial(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), BlockingIOError, folder)


def once_free(take: Callable[[], Held], busy: type[Exception], folder: Folder) -> Held:
    """Return what `take` returns; it is tried again while it raises `busy`, for as long as a killed run may hold the folder.

    Raises:
        ResumeError: Another run goes on holding it.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return take()
        except busy:
            if time.monotonic() > deadline:
                raise in_use(folder) from None
        time.sleep(_POLL_SECONDS)


def in_use(folder: Folder) -> ResumeError:
    """Return the error that says that another run holds a folder."""
    return ResumeError(
        "another run is writing to this run folder",
        folder.path,
        remedy="Wait until it has ended (`clear-ray status` shows it), or give this run a folder of its own.",
    )
