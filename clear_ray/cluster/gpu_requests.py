"""Asks Ray's autoscaler for the GPUs of a run, and sees to it that no request outlives its run.

Ray keeps a request until another replaces it, whatever becomes of the process that made it: a driver that is killed would
hold its nodes for ever. So an actor that belongs to no job makes the requests of all runs on a cluster, as one, and looks
every second whether each run's market, which ends with its driver, is still there. When the last run is gone it takes its
request back and ends too. One that died itself (with the head, say) leaves at most what the next run's replaces.

Ray has one such request for a cluster, and the last call of `request_resources` is heard. Ray Data does so for every
execution, every 20 seconds, so ours is made again at every look. Others that call it beside a run are not heard for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_NAME, _NAMESPACE = "clear_ray gpu requests", "clear_ray"
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_TRIES = 3


class GpuRequests:
    """The requests of all runs of a cluster; made a detached actor by `gpus_for`."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Any, list[dict[str, float]]]] = {}
        self._watching: asyncio.Task[None] | None = None

    async def claim(self, run: str, holder: Any, bundles: list[dict[str, float]]) -> None:
        """Ask for a run's bundles, in place of what it asked for before; none end its claim.

        Args:
            run: Any name that no other run has.
            holder: The handle of an actor that ends with the run.
            bundles: Resources of each actor that has to find a place.
        """
        if bundles:
            self._claims[run] = (holder, bundles)
        else:
            self._claims.pop(run, None)
        await self._ask()
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())

    async def _ask(self) -> None:
        wanted = [bundle for _, bundles in self._claims.values() for bundle in bundles]
        await asyncio.to_thread(request_resources, bundles=wanted)

    async def _watch(self) -> None:
        is_told = False
        while self._claims or not is_told:
            await asyncio.sleep(_LOOK_SECONDS)
            for run, (holder, _) in list(self._claims.items()):
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await holder.__ray_ready__.remote()
                except ActorDiedError:
                    self._claims.pop(run, None)
                except (RayError, TimeoutError):  # it is being restarted, or busy
                    continue
            is_told = False
            with suppress(RayError, RuntimeError):  # the control store is busy: there will be another look
                await self._ask()
                is_told = True
        ray.kill(ray.get_runtime_context().current_actor)


class GpuClaim:
    """How many workers are to have GPUs, from before there is an actor that ends with their run.

    Args:
        asking: What asks, in the end: `gpus_for`.

    Attributes:
        num_gpus: GPUs of one worker of each engine.
    """

    def __init__(self, asking: Callable[..., AbstractContextManager[Callable[[Sequence[int]], None]]]) -> None:
        self._asking = asking
        self.num_gpus: tuple[float, ...] = ()
        self._workers: dict[int, int] = {}
        self._ask: Callable[[Sequence[int]], None] | None = None

    def __call__(self, engine: int, workers: int) -> None:
        """Ask for the GPUs of so many workers of an engine, by its place: now, or when it is made."""
        self._workers[engine] = workers
        if self._ask is not None:
            self._ask(self._counts())

    def _counts(self) -> list[int]:
        return [self._workers.get(engine, 0) for engine in range(len(self.num_gpus))]

    @contextmanager
    def made(self, holder: Any) -> Iterator[None]:
        """Ask from now on; in the end nothing is asked for any more.

        Args:
            holder: Handle of an actor that ends with the run.
        """
        with self._asking(holder, self.num_gpus) as ask:
            ask(self._counts())
            self._ask = ask
            try:
                yield
            finally:
                self._ask = None


@contextmanager
def gpus_for(holder: Any, num_gpus: Sequence[float]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Yield what asks for the GPUs of so many workers of each engine; in the end nothing is asked for any more.

    It hurries nodes along, and keeps them while a worker is started again. Workers that wait for a place have nodes
    started for them too, so a request that cannot be made is no reason to end a run.

    Args:
        holder: Handle of an actor that ends with the run.
        num_gpus: GPUs of one worker of each engine; nothing is asked for those of 0.
    """
    run, asked = holder._actor_id.hex(), False

    def ask(workers: Sequence[int]) -> None:
        nonlocal asked
        bundles = [{"GPU": gpus} for gpus, count in zip(num_gpus, workers, strict=True) if gpus for _ in range(count)]
        asked = bool(bundles)
        for _ in range(_TRIES if any(num_gpus) else 0):
            with suppress(RayError, ValueError):  # it ended between being found and being asked
                ray.get(_requests().claim.remote(run, holder, bundles), timeout=_PATIENCE_SECONDS)
                return
            time.sleep(_LOOK_SECONDS)

    try:
        yield ask
    finally:
        if asked:
            ask([0] * len(num_gpus))


def _requests() -> Any:
    """Return the cluster's actor, which is started here, where a driver is, if there is none."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(GpuRequests).options(
        name=_NAME,
        namespace=_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        scheduling_strategy=here,
    )
    return actor.remote()
