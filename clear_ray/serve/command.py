"""`clear-ray serve`: the application on the cluster that is there, or on a local one, until it is told to stop."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from ray import serve

from clear_ray.cluster.joining import joined_cluster
from clear_ray.cluster.room import settled, wait_for_room
from clear_ray.serve.app import application
from clear_ray.serve.batches.drivers import end_drivers
from clear_ray.serve.settings import ServeConfig

_NAME = "clear_ray"


def serve_until_interrupted(settings: ServeConfig) -> None:
    """Run the application; on Ctrl-C or SIGTERM take no more queries, let those under way end, and leave.

    Raises:
        ConfigError: A setting cannot be used.
        ClusterError: No Ray cluster can be had, or it is full.
    """
    stop = threading.Event()
    with joined_cluster():
        wait_for_room(settled(settings.engine))
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(application(settings), name=_NAME, route_prefix="/")
            # After ray.init, which sets handlers of its own.
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, lambda *_: stop.set())
            print(f"Serving {settings.model_name} on http://{settings.host}:{settings.port}/v1", file=sys.stderr)
            while not stop.wait(timeout=1.0):
                pass
            print("Draining.", file=sys.stderr)
        finally:
            serve.delete(_NAME)  # waits for replicas, and they for their queries, up to drain_seconds
            if settings.batches is not None:
                end_drivers(settings.batches)
            shut_down: Any = serve.shutdown
            shut_down()
