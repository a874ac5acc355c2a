"""A scorer of the user's own: any function, called in a process of its own, which it may kill or hang."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clear_ray.errors import ClearRayError, ConfigError
from clear_ray.tasks.child import Child
from clear_ray.tasks.scorer_process import reply_of

_WHERE = "scoring.scorer"
_PROGRAM = Path(__file__).with_name("scorer_process.py")
_STARTS, _PAUSE_SECONDS = 3, 1.0


class UserScorer:
    """The function of a user in a process of its own, which it may kill or hang; checked on import and on every return.

    Args:
        name: `package.module:function`.
        timeout_seconds: How long a call may take.

    Raises:
        ConfigError: The function cannot be imported.
    """

    def __init__(self, name: str, timeout_seconds: float) -> None:
        function = _import(name)
        # Ours do neither, and another process costs 0.2 ms a call: too much for millions of replayed answers.
        self._ours = function if name.startswith("clear_ray.") else None
        self._name, self._timeout_seconds = name, timeout_seconds

    def __call__(self, text: str, gold: str | None, metadata: str | None, /) -> float | None:
        """Return what the function returned.

        Raises:
            ClearRayError: It raised, or returned something other than None or a number from 0 to 1; it killed its process,
                or took too long.
            ConfigError: The process does not start, three times.
        """
        arguments = [text, gold, metadata]
        reply = reply_of(self._ours, arguments) if self._ours else self._ask(arguments)
        if "raised" in reply:
            raise ClearRayError(
                f"the scorer raised {reply['raised']}", self._name, reply["text"], "Correct the function."
            )
        score: float | None = reply["score"]
        if score is not None and not 0 <= score <= 1:  # nan is neither
            raise ClearRayError("the scorer returned no number from 0 to 1", self._name, str(score), "Return 0 to 1.")
        return score

    @property
    def is_ours(self) -> bool:
        """Whether the function is one of this package, which is called in this process."""
        return self._ours is not None

    def _ask(self, arguments: list[str | None]) -> dict[str, Any]:
        child = _child_of(os.getpid(), self._name, self._timeout_seconds)
        starts = 1
        while True:
            try:
                return self._answer_of(child, arguments)
            except ChildProcessError as error:
                if starts == _STARTS:
                    raise ConfigError(
                        "the scorer's process does not start",
                        self._name,
                        str(error),
                        "Make its module importable on every node; what it printed is in the logs of the workers.",
                    ) from error
            starts += 1
            time.sleep(_PAUSE_SECONDS)  # a machine that is short of processes may have one in a moment

    def _answer_of(self, child: Child, arguments: list[str | None]) -> dict[str, Any]:
        try:
            return child.ask({"arguments": arguments}, seconds=self._timeout_seconds)
        except TimeoutError as error:
            raise ClearRayError(
                "the scorer took too long",
                self._name,
                f"more than {self._timeout_seconds:g} seconds",
                "Correct the function, or raise scoring.timeout_seconds.",
            ) from error
        except ConnectionError as error:
            raise ClearRayError("the scorer's process died", self._name, str(error), "Correct the function.") from error

    def __reduce__(self) -> tuple[type[UserScorer], tuple[str, float]]:
        return UserScorer, (self._name, self._timeout_seconds)


@functools.cache
def _child_of(process_id: int, name: str, timeout_seconds: float) -> Child:
    """Return this process's child for a function. A forked process gets one of its own, as with the referee."""
    greeting = {"scorer": name, "seconds": timeout_seconds}
    return Child(_PROGRAM, greeting=lambda: greeting | {"path": [str(entry) for entry in sys.path]})


def _import(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not search the working folder, `python file.py` does
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        remedy = "Name a function as package.module:function, importable on every node."
        raise ConfigError(f"the scorer cannot be imported: {error!r}", _WHERE, name, remedy) from error
    if not callable(found):
        raise ConfigError("the scorer is not a function", _WHERE, name, "Name a function of the module.")
    return found  # type: ignore[no-any-return]
