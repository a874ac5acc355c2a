"""What a command prints: its result to standard output, one line about its end to standard error.

Neither stream is the run's: a reader that went away changes nothing, and a result that cannot be written is told.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from clear_ray.errors import StorageError


def print_result(text: str) -> None:
    """Print a result, all of it before this returns; a reader that stops early is asked no question.

    Raises:
        StorageError: Standard output goes where nothing more can be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _give_up(sys.stdout)
    except OSError as error:
        _give_up(sys.stdout)
        remedy = "Send it elsewhere: `clear-ray status` shows a run's again."
        raise StorageError(
            "the result cannot be written", "standard output", os.strerror(error.errno or 0), remedy
        ) from error


def say(line: str) -> None:
    """Print a line to standard error, if it can be."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def give_up_unwritable() -> None:
    """Drop what standard output and error still hold and cannot write: Python would fail over it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            try:
                stream.flush()
            except OSError:
                _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Send what a stream holds, and all that comes, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
