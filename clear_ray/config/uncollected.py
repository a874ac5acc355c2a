"""No search for garbage while there is none: importing and loading make hundreds of thousands of objects, and keep them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Have Python look for no reference cycles meanwhile: a fifth of the start of an engine's process went into that."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
