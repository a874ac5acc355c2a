"""How many GPUs each engine takes where the configuration leaves that open, and whether the cluster has a place for them all.

An engine that reserves no GPU sees every GPU of its node and takes the first, and so do its neighbours. An engine that finds
no place waits for ever, without a word from Ray. So both are settled before one is started.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_status

from clear_ray.config.engine import EngineConfig, TransformersConfig, VllmConfig
from clear_ray.errors import ClusterError, ConfigError

_PATIENCE_SECONDS = 20.0  # an earlier run's engines may just be ending
_LOOK_SECONDS = 0.5
_UNTYPED = "node_"
_LOGGER = logging.getLogger("clear_ray")


def with_gpus(config: EngineConfig, *, gpus: float) -> EngineConfig:
    """Return the settings of an engine with the GPUs of each actor filled in.

    Args:
        config: `num_gpus` as the user gave it; None derives 1 (`tensor_parallel` with vLLM) for an engine that can use one.
        gpus: GPUs that the cluster has.
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
    gpus = _total("GPU")
    is_replay = not isinstance(config, VllmConfig | TransformersConfig)
    is_on_cpu = isinstance(config, TransformersConfig) and (config.device or "cuda").startswith("cpu")
    if config.num_gpus == 0 and gpus > 0 and not is_replay and not is_on_cpu:
        _LOGGER.warning(
            "engine.num_gpus is 0 and the cluster has %g GPUs: engines reserve none, and those of a node that use one share "
            "its first. Leave num_gpus out to give each its own.",
            gpus,
        )
    found = with_gpus(config, gpus=gpus)
    may_need_some = found.num_gpus != with_gpus(config, gpus=1.0).num_gpus
    if may_need_some and _may_grow(ray.get_runtime_context().gcs_address):
        _LOGGER.warning(
            "engine.num_gpus is left out and the cluster has no GPU yet: the engines take none. "
            "Set num_gpus: 1 to have nodes with GPUs started for them."
        )
    return found


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
    engines = _named(config)
    if each and (places := _places(each, gpus := _gpus_of_nodes())) < wanted:
        if not _may_grow(ray.get_runtime_context().gcs_address):
            raise _no_place(config, gpus)
        have = f"{sum(gpus):g} GPUs, room for {places}"
        _LOGGER.warning("%s: the cluster has %s and is asked for more nodes.", engines, have)
        return
    if each:
        _wait_until_free("GPU", each * wanted, engines, seconds)
    if not _may_grow(ray.get_runtime_context().gcs_address):
        _wait_until_free("CPU", 1.0, "the readers of queries, 1 CPU", seconds)


def refuse_too_many_gpus(configs: Sequence[EngineConfig]) -> None:
    """Raise ConfigError if a cluster that stays as it is has fewer GPUs than several engines take together."""
    wanted = sum((config.num_gpus or 0.0) * config.workers for config in configs)
    if wanted > _total("GPU") and not _may_grow(ray.get_runtime_context().gcs_address):
        raise _no_place_together(wanted, _total("GPU"))


def refuse_no_place(configs: Sequence[EngineConfig], *, control_store: str | None) -> None:
    """Do what a run does once it has joined its cluster, without joining: refuse engines that it will never have a place for.

    Args:
        configs: The engines of the run; those that leave `num_gpus` open take what there is.
        control_store: Address of the cluster; None for one of this machine's own.

    Raises:
        ConfigError: There is an engine that takes more GPUs than there are, and no node can come.
    """
    taking = [config for config in configs if config.num_gpus]
    if not taking or (control_store is not None and _may_grow(control_store)):
        return
    gpus = [_gpus_here()] if control_store is None else _gpus_at(control_store)
    if gpus is None:
        return
    wanted = sum((config.num_gpus or 0.0) * config.workers for config in taking)
    if len(configs) > 1 and wanted > sum(gpus):
        raise _no_place_together(wanted, sum(gpus))
    for config in taking:
        if _places(config.num_gpus or 0.0, gpus) < config.workers:
            raise _no_place(config, gpus)


def _named(config: EngineConfig) -> str:
    return f"{config.workers} {'engine' if config.workers == 1 else 'engines'} of {config.num_gpus or 0.0:g} GPU each"


def _no_place(config: EngineConfig, gpus: Sequence[float]) -> ConfigError:
    have = f"{sum(gpus):g} GPUs, room for {_places(config.num_gpus or 0.0, gpus)}"
    remedy = "Lower engine.workers or engine.num_gpus, or add nodes with GPUs."
    return ConfigError(f"the cluster has no place for {_named(config)}", "engine.num_gpus", have, remedy)


def _no_place_together(wanted: float, total: float) -> ConfigError:
    remedy = "Lower their workers or num_gpus, or add nodes with GPUs."
    have = f"{total:g} GPUs for {wanted:g}"
    return ConfigError("the cluster has no place for all engines together", "engines", have, remedy)


def _gpus_here() -> float:
    """Return the GPUs that a Ray of this machine would find, and this process may see."""
    found = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    seen = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    return float(found if seen is None else min(found, len(seen)))


def _gpus_at(control_store: str) -> list[float] | None:
    """Return the GPUs of each node of a cluster; None where it does not say."""
    try:
        status = get_cluster_status(control_store)
        used = [node.resource_usage for node in (*status.active_nodes, *status.idle_nodes)]
        return [sum(one.total for one in each.usage if one.resource_name == "GPU") for each in used if each is not None]
    except Exception:  # of interfaces that Ray may change: then nothing is refused for it
        return None


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


def _gpus_of_nodes() -> list[float]:
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    return [float(node["Resources"].get("GPU", 0.0)) for node in nodes if node["Alive"]]


def _places(each: float, gpus: Sequence[float]) -> int:
    """Return how many engines of `each` GPUs nodes with so many could hold if they held nothing else."""
    return sum(int(of_node / each + 1e-9) for of_node in gpus)


def _total(resource: str) -> float:
    return _amount(ray.cluster_resources, resource)


def _available(resource: str) -> float:
    return _amount(ray.available_resources, resource)


def _may_grow(control_store: str) -> bool:
    """Return whether an autoscaler may bring nodes; true where it is not known.

    Nodes that it brought, a head among them, have a type or a name of their own; those of `ray start` have their id's.
    """
    try:
        status = get_cluster_status(control_store)
        nodes = [*status.active_nodes, *status.idle_nodes]
        is_typed = any(node.instance_id or not node.ray_node_type_name.startswith(_UNTYPED) for node in nodes)
        written = GcsClient(address=control_store).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
        reported = json.loads(written or b"{}").get("autoscaler_report") or {}
        types = reported.get("active_nodes") or {}
        return is_typed or any(not name.startswith(_UNTYPED) for name in types)
    except Exception:  # of interfaces that Ray may change: then nothing is refused for it
        return True


def _amount(ask: Callable[[], Any], resource: str) -> float:
    return float(ask().get(resource, 0.0))
