"""A Ray of this machine's own without the services that nothing in a run asks for.

Beside Ray itself `ray.init` starts an autoscaler, which has no node to add here, a monitor that carries workers' logs to a
driver that takes none, and a dashboard without pages, for usage statistics, whose start it waits for. Each is a process of
about a second of CPU, and Ray has no settings for them. A version of Ray in which they start otherwise starts them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.node import Node

SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's `Node`, each of which starts one of them."""


@contextmanager
def few_services() -> Iterator[None]:
    """Have `ray.init` start none of `SERVICES` meanwhile."""
    kept: dict[str, Callable[..., None]] = {name: vars(Node)[name] for name in SERVICES if name in vars(Node)}
    for name in kept:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


def _start_nothing(node: Any, *_: Any, **__: Any) -> None:
    node._webui_url = ""  # as after a dashboard without pages
