"""`clear-ray serve`: the application on the cluster that is there, or on a local one, until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from typing import Any

from ray import serve

from clear_ray.cluster.joining import joined_cluster
from clear_ray.cluster.room import refuse_too_many_gpus, settled, wait_for_room
from clear_ray.serve.app import application
from clear_ray.serve.batches.drivers import end_drivers
from clear_ray.serve.settings import ServeConfig
from clear_ray.serve.starting import check_start, failure_of, refuse_taken_name, running_serve

_NAME = "clear_ray"
_LAST_BYTES_SECONDS = 0.5  # a query is settled just before its answer leaves
_ANSWER_SECONDS = 10.0


def serve_until_interrupted(settings: ServeConfig) -> None:
    """Run the application; on Ctrl-C or SIGTERM take no more queries, let those taken end, and leave. A second one hurries.

    Serve and other applications on it are left as they are, unless this command started Serve and is the last on it.

    Raises:
        ConfigError: A setting cannot be used.
        ClusterError: No Ray cluster can be had, or it is full.
        EngineError: The application did not start.
    """
    check_start(settings)
    stop, hurry = threading.Event(), threading.Event()
    _say("Starting Ray.")
    with joined_cluster():
        each = [settled(engine) for engine in settings.each.values()]
        refuse_too_many_gpus(each)
        for engine in each:
            wait_for_room(engine)
        is_ours = running_serve() is None
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        refuse_taken_name(_NAME)
        try:
            _say(f"Loading {', '.join(settings.each)}.")
            _deploy(settings)

            def take(*_: Any) -> None:
                (hurry if stop.is_set() else stop).set()

            # After ray.init, which sets handlers of its own.
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, take)
            _say_where(settings)
            while not stop.wait(timeout=1.0):
                pass
            _say("Draining.")
            _drain(settings.drain_seconds, hurry)
        finally:
            _leave(settings, is_ours=is_ours)


def _deploy(settings: ServeConfig) -> None:
    try:
        serve.run(application(settings), name=_NAME, route_prefix="/")
    except (RuntimeError, ValueError) as error:
        raise failure_of(_NAME, error) from error


def _say_where(settings: ServeConfig) -> None:
    """Say the address: Serve's own, which another command may have started elsewhere."""
    options = running_serve()
    host, port = (settings.host, settings.port) if options is None else (options.host, options.port)
    if (host, port) != (settings.host, settings.port):
        _say(f"This cluster's Serve was started on {host}:{port}, and stays there.")
    name = f"[{host}]" if host and ":" in host else host
    _say(f"Serving {', '.join(settings.models)} on http://{name}:{port}/v1; an example is at http://{name}:{port}/")


def _drain(seconds: float, hurry: threading.Event) -> None:
    """Sell nothing more, and wait until what was taken has ended: those that wait for the price, too."""
    end = time.monotonic() + seconds
    # Whatever fails here, what is left to do is to leave.
    with contextlib.suppress(Exception):
        price = serve.get_deployment_handle("price", _NAME)
        price.stop_selling.remote().result(timeout_s=_ANSWER_SECONDS)
        while time.monotonic() < end:
            account, waiting = price.account.remote().result(timeout_s=_ANSWER_SECONDS)
            if not waiting and not account.reserved_tokens:
                break
            if hurry.wait(timeout=0.2):
                return
        hurry.wait(timeout=_LAST_BYTES_SECONDS)


def _leave(settings: ServeConfig, *, is_ours: bool) -> None:
    with contextlib.suppress(TimeoutError):  # replicas that do not end are killed by Serve all the same
        serve.delete(_NAME)
    if settings.batches is not None:
        end_drivers(settings.batches)
    if is_ours and not serve.status().applications:
        shut_down: Any = serve.shutdown
        shut_down()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
