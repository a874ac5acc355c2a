"""A process that runs other people's generators and checks, so that they can neither hang nor harm this one.

Requests and replies are lines of JSON over pipes; `referee_process.py` is the other end. It limits the processor time and
the memory of each check by itself: a check that breaks a limit ends the process, which is noticed here as the end of its
output, and the next request starts another.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from clear_ray.errors import ClearRayError

_PROGRAM = Path(__file__).with_name("referee_process.py")
# One thread keeps the memory limit meaningful on large machines. reasoning-gym iterates over sets of text: without a fixed
# hash seed five of its generators give other queries in every process (measured with 0.1.25).
_SETTINGS = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Referee:
    """The near end: starts the process when first asked, and again after it has ended. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the reply to a request: `value`, or `error` as text; None if the process ended over it.

        Args:
            request: `do` and what it needs; see `referee_process`.

        Raises:
            ClearRayError: The process cannot be started.
        """
        with self._lock:
            process = self._running()
            try:
                reply = _exchange(process, json.dumps(request))
            except (BrokenPipeError, ValueError):
                reply = ""
            if not reply:
                self._end()
                return None
            decoded: dict[str, Any] = json.loads(reply)
            return decoded

    def close(self) -> None:
        """End the process; another request starts a new one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 (our own file, no user text)
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                env=os.environ | _SETTINGS,
            )
            if not _exchange(self._process, "{}"):  # a start that fails must not look like a wrong answer
                self._end()
                raise ClearRayError(
                    "the scoring process does not start",
                    str(_PROGRAM),
                    "",
                    f"Run {sys.executable} {_PROGRAM} to see why.",
                )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with process:  # closes the pipes and waits
                pass


def shared_referee() -> Referee:
    """Return this process's referee. A forked child gets one of its own: it must not share its parent's pipes."""
    return _referee_of(os.getpid())


@functools.cache
def _referee_of(process_id: int) -> Referee:
    return Referee()


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process has no pipes")
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()
