"""How many GPUs each engine takes where the configuration leaves that open, and whether the cluster has a place for them all.

An engine that reserves no GPU sees every GPU of its node and takes the first, and so do its neighbours. An engine that finds
no place waits for ever, without a word from Ray. So both are settled before one is started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private import state

from clear_ray.config import EngineConfig, TransformersConfig, VllmConfig
from clear_ray.errors import ClusterError, ConfigError

_PATIENCE_SECONDS = 20.0  # an earlier run's engines may just be ending
_LOOK_SECONDS = 0.5
_LOGGER = logging.getLogger("clear_ray")


def with_gpus(config: EngineConfig, *, gpus: float) -> EngineConfig:
    """Return the settings of an engine with the GPUs of each actor filled in.

    Args:
        config: `num_gpus` as the user gave it; None derives 1 (`tensor_parallel` with vLLM) for an engine that can use one.
        gpus: That the cluster has, or can have.
    """
    if config.num_gpus is not None:
        return config
    can_use = isinstance(config, VllmConfig) or (
        isinstance(config, TransformersConfig) and (config.device or "cuda").startswith("cuda")
    )
    each = config.tensor_parallel if isinstance(config, VllmConfig) else 1
    return config.model_copy(update={"num_gpus": float(each) if can_use and gpus > 0 else 0.0})


def settled(config: EngineConfig) -> EngineConfig:
    """Return what `with_gpus` makes of the cluster that was joined; engines that share GPUs unreserved are said in a line."""
    gpus = max(_total("GPU"), _reachable("GPU"))
    is_replay = not isinstance(config, VllmConfig | TransformersConfig)
    is_on_cpu = isinstance(config, TransformersConfig) and (config.device or "cuda").startswith("cpu")
    if config.num_gpus == 0 and gpus > 0 and not is_replay and not is_on_cpu:
        _LOGGER.warning(
            "engine.num_gpus is 0 and the cluster has %g GPUs: engines reserve none, and those of a node that use one share "
            "its first. Leave num_gpus out to give each its own.",
            gpus,
        )
    return with_gpus(config, gpus=gpus)


def wait_for_room(config: EngineConfig, *, seconds: float = _PATIENCE_SECONDS) -> None:
    """Return when the engines of a run can be placed, or nodes may yet come for them.

    Args:
        config: `workers` engines of `num_gpus` each.
        seconds: How long to wait for what others hold.

    Raises:
        ConfigError: The cluster is too small for them, and stays so.
        ClusterError: Others hold what they need, or every CPU, without which no query can be read.
    """
    each, wanted = config.num_gpus or 0.0, config.workers
    engines = f"{wanted} {'engine' if wanted == 1 else 'engines'} of {each:g} GPU each"
    if each and (places := _places(each)) < wanted:
        have = f"{_total('GPU'):g} GPUs, room for {places}"
        if _reachable("GPU") < each * wanted:
            remedy = "Lower engine.workers or engine.num_gpus, or add nodes with GPUs."
            raise ConfigError(f"the cluster has no place for {engines}", "engine.num_gpus", have, remedy)
        _LOGGER.warning("%s: the cluster has %s and is asked for more nodes.", engines, have)
        return
    if each:
        _wait_until_free("GPU", each * wanted, engines, seconds)
    if _reachable("CPU") <= _total("CPU"):
        _wait_until_free("CPU", 1.0, "the readers of queries, 1 CPU", seconds)


def _wait_until_free(resource: str, wanted: float, of: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (free := _available(resource)) < wanted:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"it is full: there is no place for {of}",
                "Ray cluster",
                f"{free:g} of {_total(resource):g} {resource}s free for {seconds:.0f} s",
                "See `ray status` for what holds them, and run it again when they are free.",
            )
        time.sleep(_LOOK_SECONDS)


def _places(each: float) -> int:
    """Return how many engines the nodes that are there could hold if they held nothing else."""
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = (node for node in nodes if node["Alive"])
    return sum(int(node["Resources"].get("GPU", 0.0) / each + 1e-9) for node in alive)


def _total(resource: str) -> float:
    return _amount(ray.cluster_resources, resource)


def _available(resource: str) -> float:
    return _amount(ray.available_resources, resource)


def _reachable(resource: str) -> float:
    """Return how much the autoscaler may bring the cluster to; 0 where there is none, or it does not say."""
    return _amount(lambda: state.state.get_max_resources_from_cluster_config() or {}, resource)


def _amount(ask: Callable[[], Any], resource: str) -> float:
    return float(ask().get(resource, 0.0))
