"""From a configuration to a Ray Serve application."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from clear_ray.cluster.room import settled
from clear_ray.engine.build import with_key
from clear_ray.run_folder.locations import absolute_engine, absolute_estimate
from clear_ray.serve.batches.dispatcher import BatchReplica
from clear_ray.serve.batches.places import absolute_batches
from clear_ray.serve.deployments import EngineReplica
from clear_ray.serve.ingress import Ingress
from clear_ray.serve.log import LOGGING, WITHOUT_CALLS
from clear_ray.serve.price_replica import PriceReplica
from clear_ray.serve.routing import TokenRouter
from clear_ray.serve.scaling import TokenPolicy
from clear_ray.serve.settings import ScalingSettings, ServeConfig

_WAITING = 100_000  # calls to the price that may wait for their turn at once
_CALLS_OF_A_BATCH = 64  # to the engine, at once: more than its callers open
_OPTIONS_OF_THE_CLUSTER = {"-a", "--address", "--runtime-env", "--runtime-env-json", "--working-dir"}  # of `serve run`
_REPORT_SECONDS = 1.0
_TELL_SECONDS = 2.0  # between two times that metrics of the price are told
_LOOK_BACK_SECONDS = 3.0
# Serve hands every call to a thread of ours, and every call of ours to a thread of its own. No call between these replicas
# computes or carries much, so that is most of what it costs: they have one thread. Engines ask the price by gRPC, which costs
# less than a task of Ray where one answer comes back; for streams, as from engines to the ingress, it costs more.
_ONE_THREAD = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
_BY_GRPC = {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the application: ingress, engine and price.

    For `serve run clear_ray.serve:build_app config=FILE`, and as `import_path` with `args` in a Serve config file.

    Args:
        args: `{"config": FILE}`, or the settings themselves.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, missing or out of range.
    """
    settings = ServeConfig.load(args["config"]) if set(args) == {"config"} else ServeConfig.parse(args, where="args")
    if _is_serve_run():
        # `serve run IMPORT_PATH` has no option for the port: it takes Serve as it finds it, and else starts it on 8000.
        serve.start(http_options={"host": settings.host, "port": settings.port})
    return application(settings)


def _is_serve_run() -> bool:
    """Whether `serve run` builds the application, and has nothing of its own to say about the cluster."""
    own = {word.partition("=")[0] for word in sys.argv} & _OPTIONS_OF_THE_CLUSTER
    return Path(sys.argv[0]).name == "serve" and sys.argv[1:2] == ["run"] and not own


def application(settings: ServeConfig) -> serve.Application:
    """Build the application of settings that are already checked."""
    # `serve build` has no cluster to look at: what it writes reserves what the settings say.
    batches = absolute_batches(settings.batches)
    price = settings.price.model_dump(mode="json")
    shared: dict[str, Any] = {
        "logging_config": LOGGING,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    inner = shared | {"logging_config": WITHOUT_CALLS}
    deployment: Any = serve.deployment
    price_deployment = deployment(PriceReplica).options(
        name="price",
        num_replicas=1,  # one account, one price
        max_ongoing_requests=_WAITING,
        ray_actor_options=_in_one_thread(),
        user_config=price,
        health_check_period_s=_TELL_SECONDS,
        **inner,
    )
    # Without price and limits: what is in no constructor can change without a new replica.
    fixed = settings.model_copy(update={"batches": batches}).model_dump(mode="json", exclude={"price", "limits"})
    price_handle = price_deployment.bind(settings.model_name, settings.tenants)
    engines = {
        model: _engine(settings, model, number, price_handle, inner) for number, model in enumerate(settings.each)
    }
    batch_options = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}, **shared}
    batch_deployment = deployment(BatchReplica).options(name="batches", **batch_options)
    ingress: Any = Ingress
    app: serve.Application = ingress.options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=_WAITING,
        ray_actor_options=_in_one_thread(),
        user_config={"limits": settings.limits.model_dump(mode="json")},
        **shared,
    ).bind(
        fixed,
        engines,
        price_handle,
        *([batch_deployment.bind(fixed, engines)] if batches else []),
    )
    return app


def _engine(
    settings: ServeConfig, model: str, number: int, price: serve.Application, options: Mapping[str, Any]
) -> serve.Application:
    """Return the deployment of one of the server's engines."""
    # `serve build` has no cluster to look at: what it writes reserves what the settings say.
    config = settled(settings.each[model]) if ray.is_initialized() else settings.each[model]
    engine, estimate = absolute_engine(config), absolute_estimate(settings.estimate_of(model))
    batches = settings.batches
    router: Any = TokenRouter
    deployment: Any = serve.deployment
    bound: serve.Application = (
        deployment(EngineReplica)
        .options(
            name=f"engine-{number}" if number else "engine",
            # num_cpus=0: see cluster.py; the engine takes what it was configured to.
            ray_actor_options=_in_one_thread(_BY_GRPC) | {"num_gpus": engine.num_gpus or 0},
            **_number_of_replicas(engine.workers, settings.scaling),
            request_router_config=RequestRouterConfig(request_router_class=router),
            # Twice the batch, so that the next query is there when one ends.
            max_ongoing_requests=2 * engine.max_batch + (_CALLS_OF_A_BATCH * batches.running if batches else 0),
            max_queued_requests=settings.max_queued,
            **options,
        )
        .bind(with_key(engine), estimate, settings.max_tokens, batches.kept_slots if batches else None, model, price)
    )
    return bound


def _in_one_thread(more: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {"num_cpus": 0, "runtime_env": {"env_vars": {**_ONE_THREAD, **(more or {})}}}


def _number_of_replicas(workers: int, scaling: ScalingSettings | None) -> dict[str, Any]:
    if scaling is None:
        return {"num_replicas": workers}
    policy: Any = {"policy_function": TokenPolicy, "policy_kwargs": {"target_seconds": scaling.target_seconds}}
    config = AutoscalingConfig(
        min_replicas=workers,
        max_replicas=scaling.max_workers,
        upscale_delay_s=scaling.up_seconds,
        downscale_delay_s=scaling.down_seconds,
        metrics_interval_s=_REPORT_SECONDS,
        look_back_period_s=_LOOK_BACK_SECONDS,
        policy=policy,
    )
    return {"autoscaling_config": config}
