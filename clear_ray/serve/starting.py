"""What can be known to fail before anything is started, and what Serve says of what failed later, in a line."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from clear_ray.engine.checking import check_engine
from clear_ray.errors import ConfigError, EngineError
from clear_ray.estimation.resolve import resolve_head
from clear_ray.redaction import printable
from clear_ray.serve.settings import ServeConfig

_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


def check_start(settings: ServeConfig) -> None:
    """Look for what a configuration names, which a replica would miss only after a minute.

    Raises:
        ConfigError: A model or a head is not there or does not fit, or the port is taken.
        EngineError: A file of the model is missing or damaged.
        SchemaError: A recording cannot be read.
    """
    if not os.environ.get("RAY_ADDRESS"):
        _refuse_taken_port(settings.host, settings.port)
    for model, engine in settings.each.items():
        estimate = settings.estimate_of(model)
        head = resolve_head(estimate.head, cap_tokens=settings.max_tokens, layers=estimate.layers)
        check_engine(
            engine,
            probe_layers=head.card.probe_layers,
            check_model=head.check_model,
            # A large model's weights take minutes to hash; loading them does it.
            is_for_any_model=True,
        )


def running_serve() -> HTTPOptions | None:
    """Return how the cluster's Serve listens; None if there is none."""
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    options: HTTPOptions | None = None if client is None else client.http_config
    return options


def refuse_taken_name(name: str) -> None:
    """Leave an application of this name alone that runs already: it is another command's.

    Raises:
        ConfigError: There is one.
    """
    if name in serve.status().applications:
        remedy = (
            f"Stop that one first, or have it deleted: python -c \"from ray import serve; serve.delete('{name}')\"."
        )
        raise ConfigError("the cluster serves an application of this name already", "serve", name, remedy)


def failure_of(name: str, error: Exception) -> EngineError:
    """Return in a line why an application did not start.

    Args:
        name: Of the application.
        error: What Serve raised.
    """
    application = serve.status().applications.get(name)
    messages = [str(error)]
    if application is not None:
        messages += [application.message, *(one.message for one in application.deployments.values())]
    found = [match for message in messages for match in _ERROR.findall(message)]
    ours = [text for kind, text in found if kind not in ("RayTaskError", "RuntimeError")] or [text for _, text in found]
    said = printable(ours[-1] if ours else str(error).strip().splitlines()[-1], most=400)
    return EngineError(
        "the server did not start", value=said, remedy="Replicas' logs are in Ray's folder, under serve."
    )


def _refuse_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what, remedy = "the server cannot listen there", "Stop what listens there, or give another --port."
            raise ConfigError(what, "port", f"{host}:{port}: {error.strerror}", remedy) from error
