"""How far an engine has come with loading its model, through Ray's store of keys: an actor hears no call until it is made.

A display is all that reads it: whatever Ray makes of it, the load goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

_NAMESPACE = b"clear_ray loading"


def told_through_ray(name: str) -> Callable[[float], None]:
    """Return what notes the share that is loaded, a whole percent at a time.

    Args:
        name: The engine's actor.
    """
    last = -1

    def note(share: float) -> None:
        nonlocal last
        percent = int(100 * share)
        if percent != last:
            last = percent
            with suppress(Exception):
                _internal_kv_put(name.encode(), str(percent).encode(), namespace=_NAMESPACE)

    return note


def share_loaded(name: str) -> float | None:
    """Return the share that an engine has loaded; None if it has not said."""
    with suppress(Exception):
        found = _internal_kv_get(name.encode(), namespace=_NAMESPACE)
        return None if found is None else int(found) / 100
    return None


def forget_share(name: str) -> None:
    """Remove what an engine has said."""
    with suppress(Exception):
        _internal_kv_del(name.encode(), namespace=_NAMESPACE)
