"""The far end of a user's scorer: run as a program of its own, importing nothing of clear_ray.

Reads one JSON request a line, writes one JSON reply a line. Requests, of which the first comes once:

    {"scorer", "path", "seconds"}   -> {} once the function is imported with that module search path, or its error as text
    {"arguments": [text, gold, metadata]}   -> its score, a number or null; or what it raised, with the text of that

The function has the standard input and output to itself: it reads nothing, and what it prints goes where its errors go.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

GRACE_SECONDS = 5.0
LONGEST_TEXT = 1_000


def function_of(request: dict[str, Any]) -> Callable[..., Any]:
    """Import the function; whatever its module raises comes through."""
    sys.path[:] = request["path"]
    module_name, _, path = request["scorer"].partition(":")
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def reply_of(function: Callable[..., Any], arguments: list[str | None]) -> dict[str, Any]:
    """Call the function and say what came of it."""
    try:
        returned = function(*arguments)
        return {"score": None if returned is None else float(returned)}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() too: it is this answer's failure, not a reason to start another process
        return {"raised": type(error).__name__, "text": _text_of(error)}


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process, by the kernel, if the block takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:LONGEST_TEXT]
    except Exception as second:  # an exception of the user's may not even have a text
        return f"its text raised {type(second).__name__}"


def main() -> None:
    """Answer requests until the input ends."""
    requests, replies = os.fdopen(os.dup(0), encoding="ascii"), os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which is written line by line: what is printed before a death is not lost with a buffer
    greeting = json.loads(requests.readline())
    try:
        function = function_of(greeting)
        reply: dict[str, Any] = {}
    except BaseException as error:
        reply = {"error": f"{type(error).__name__}: {_text_of(error)}"}
    with contextlib.suppress(BrokenPipeError):  # the near end has died
        print(json.dumps(reply), file=replies, flush=True)
        for line in requests:
            # The near end ends a call that takes too long; if it died meanwhile, nothing else would.
            with _alarm(greeting["seconds"] + GRACE_SECONDS):
                reply = reply_of(function, json.loads(line)["arguments"])
            print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
