"""A process that runs other people's generators and checks, so that they can neither hang nor harm this one.

`child.py` starts it and speaks to it, `referee_process.py` is the other end. It limits the processor time and the memory of
each check by itself: a check that breaks a limit ends the process, and the next request starts another.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from clear_ray.errors import ClearRayError
from clear_ray.tasks.child import Child

_PROGRAM = Path(__file__).with_name("referee_process.py")
# One thread keeps the memory limit meaningful on large machines. reasoning-gym iterates over sets of text: without a fixed
# hash seed five of its generators give other queries in every process (measured with 0.1.25).
_SETTINGS = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Referee:
    """The near end of the referee's process. Any thread may ask."""

    def __init__(self) -> None:
        self._child = Child(_PROGRAM, settings=_SETTINGS, is_silent=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the reply to a request: `value`, or `error` as text; None if the process ended over it.

        Args:
            request: `do` and what it needs; see `referee_process`.

        Raises:
            ClearRayError: The process cannot be started.
        """
        try:
            return self._child.ask(request)
        except ConnectionError:
            return None
        except ChildProcessError as error:  # a start that fails must not look like a wrong answer
            remedy = f"Run {sys.executable} {_PROGRAM} to see why."
            raise ClearRayError("the scoring process does not start", str(_PROGRAM), str(error), remedy) from error

    def close(self) -> None:
        """End the process; another request starts a new one."""
        self._child.close()


def shared_referee() -> Referee:
    """Return this process's referee. A forked child gets one of its own: it must not share its parent's pipes."""
    return _referee_of(os.getpid())


@functools.cache
def _referee_of(process_id: int) -> Referee:
    return Referee()
