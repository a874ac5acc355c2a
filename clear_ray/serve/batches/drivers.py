"""The drivers of batches as actors of the cluster: started, found again, and ended, by the names of their batches."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import ray
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clear_ray.serve.batches.driver import RUNNING, BatchDriver
from clear_ray.serve.batches.places import Places
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.serve.batches.store import Store

_NAMESPACE = "clear_ray"
_PREFIX = "clear_ray batch "


class Drivers:
    """The drivers of one server's batches.

    Args:
        settings: Where everything is.
        engines: See `BatchDriver`.
    """

    def __init__(self, settings: BatchSettings, engines: dict[str, Any]) -> None:
        self._settings, self._engines = settings, engines

    def alive(self) -> Collection[str]:
        """Return the batches that have a driver."""
        actors: list[dict[str, str]] = list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in actors if actor["namespace"] == _NAMESPACE]
        return {name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)}

    def start(self, batch_id: str) -> None:
        """Start the driver of a batch, on this node, where the store is."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        driver: Any = ray.remote(BatchDriver)
        driver.options(
            name=f"{_PREFIX}{batch_id}",
            namespace=_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            scheduling_strategy=here,
        ).remote(self._settings, batch_id, self._engines)

    def end(self, batch_id: str) -> None:
        """Kill the driver of a batch, if it has one."""
        _end(batch_id)


def end_drivers(settings: BatchSettings) -> None:
    """End the drivers of a server that stops; its batches go on when it is started again."""
    store = Store(Places(settings).folder)
    for batch in store.batches_in(sorted(RUNNING)):
        _end(batch.id)
    store.close()


def _end(batch_id: str) -> None:
    with suppress(ValueError):  # it has none
        ray.kill(ray.get_actor(f"{_PREFIX}{batch_id}", namespace=_NAMESPACE))
