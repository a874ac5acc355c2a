"""Enters a context while its user does something else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Entered = TypeVar("Entered")


@contextmanager
def meanwhile(context: AbstractContextManager[Entered]) -> Iterator[Callable[[], Entered]]:
    """Enter a context in a thread; yield what waits for it and returns or raises what came of it; leave it in the end."""
    with ThreadPoolExecutor(1, "clear_ray beginning") as threads:
        entering = threads.submit(context.__enter__)
        try:
            yield entering.result
        finally:
            if entering.exception() is None:
                context.__exit__(*sys.exc_info())
