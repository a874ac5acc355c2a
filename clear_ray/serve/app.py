"""From a configuration to a Ray Serve application."""

from __future__ import annotations

from typing import Any

from ray import serve

from clear_ray.serve.deployments import EngineReplica, PriceReplica
from clear_ray.serve.ingress import Ingress
from clear_ray.serve.settings import ServeConfig

_WAITING = 100_000  # calls to the price that may wait for their turn at once


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the application: ingress, engine and price.

    For `serve run clear_ray.serve:build_app config=FILE`, and as `import_path` with `args` in a Serve config file.

    Args:
        args: `{"config": FILE}`, or the settings themselves.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, missing or out of range.
    """
    settings = ServeConfig.load(args["config"]) if set(args) == {"config"} else ServeConfig.parse(args, where="args")
    return application(settings)


def application(settings: ServeConfig) -> serve.Application:
    """Build the application of settings that are already checked."""
    engine, price = settings.engine, settings.price.model_dump(mode="json")
    shared = {"graceful_shutdown_timeout_s": settings.drain_seconds, "graceful_shutdown_wait_loop_s": 0.5}
    engine_options: dict[str, Any] = {
        # num_cpus=0: see cluster.py; the engine takes what it was configured to.
        "ray_actor_options": {"num_cpus": 0, "num_gpus": engine.num_gpus},
        "num_replicas": engine.workers,
        # Twice the batch, so that the next query is there when one ends.
        "max_ongoing_requests": 2 * engine.max_batch,
        "max_queued_requests": settings.max_queued,
    }
    deployment: Any = serve.deployment
    engine_deployment = deployment(EngineReplica).options(name="engine", **shared, **engine_options)
    price_deployment = deployment(PriceReplica).options(
        name="price",
        num_replicas=1,  # one account, one price
        max_ongoing_requests=_WAITING,
        ray_actor_options={"num_cpus": 0},
        user_config=price,
        **shared,
    )
    ingress: Any = Ingress
    app: serve.Application = ingress.options(
        name="ingress", max_ongoing_requests=_WAITING, ray_actor_options={"num_cpus": 0}, **shared
    ).bind(
        # Without the price: what is in no constructor can change without a new replica.
        settings.model_dump(mode="json", exclude={"price"}),
        engine_deployment.bind(engine, settings.estimate, settings.max_tokens),
        price_deployment.bind(),
    )
    return app
