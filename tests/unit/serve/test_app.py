"""The application that Serve is handed: what its replicas are started with."""

from __future__ import annotations

from typing import Any

from ray.serve._private import constants

from clear_ray.serve.app import application
from tests.ray.serving import settings


def deployments(app: Any) -> dict[str, Any]:
    """Return the deployments of an application by their names."""
    found = {app._bound_deployment.name: app._bound_deployment}
    for argument in app._bound_deployment.init_args:
        for one in argument.values() if isinstance(argument, dict) else (argument,):
            if hasattr(one, "_bound_deployment"):
                found |= deployments(one)
    return found


def test_calls_between_replicas_change_no_threads() -> None:
    """By settings of Serve's own; a release that calls them otherwise would ignore ours without a word."""
    replicas = deployments(application(settings()))
    for name in ("ingress", "engine", "price"):
        variables = replicas[name].ray_actor_options["runtime_env"]["env_vars"]
        threads = {key: value for key, value in variables.items() if "SEPARATE" in key}
        assert set(threads.values()) == {"0"}
        assert len(threads) == 2
        assert all(isinstance(getattr(constants, key), bool) for key in variables)
    assert replicas["engine"].ray_actor_options["num_gpus"] == 0


def test_each_of_several_engines_is_a_deployment_of_its_own() -> None:
    engines = {name: {**settings().engine.model_dump(), "workers": count} for count, name in enumerate("ab", 1)}
    found = deployments(application(settings(engines=engines, scaling={"max_workers": 3})))
    assert set(found) == {"ingress", "price", "engine", "engine-1"}
    scaled = [found[name]._deployment_config.autoscaling_config for name in ("engine", "engine-1")]
    assert [(each.min_replicas, each.max_replicas) for each in scaled] == [(1, 3), (2, 3)]
