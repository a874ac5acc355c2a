"""The engine actors of a run: started, found again, resized and ended."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)

from clear_ray.cluster.loading import forget_share, share_loaded, told_through_ray
from clear_ray.cluster.metrics import watch_engine
from clear_ray.cluster.pieces import pieces_of
from clear_ray.cluster.room import wait_for_room
from clear_ray.config.engine import EngineConfig
from clear_ray.engine.base import ModelCard
from clear_ray.engine.build import with_key
from clear_ray.errors import ClearRayError, EngineError, EngineFailedError, own_error
from clear_ray.estimation.head import Head, HeadCard
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker

# Above any number of calls that may wait for their turn at once: a full actor could not take the refund they wait for.
CALLS_IN_FLIGHT = 100_000

_LOAD_TIMEOUT_SECONDS = 1_800.0

_TELL_SECONDS = 5.0

_LOOK_SECONDS = 0.2

_RELOAD_SECONDS = 5.0

_LAST_WORDS_SECONDS = 0.5  # in which the calls of a failed engine hear why

_DEATHS = (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,  # what it answered was on a node that is gone
    OutOfMemoryError,
    WorkerCrashedError,
)


class EngineActors:
    """The engine workers of a run: `engine.workers` from the start, more and fewer as they are wanted.

    Args:
        config: Settings of the engines.
        head: Their estimate.
        run_dir: The run folder, which names the actors.
        ask_for: Function that is told how many GPUs' worth of engines there are to be, before they are.
        rows_each: See `Workers`; None if their number will not change.
        first_number: Number of the first worker in the names of a run's actors, which may have several engines.
    """

    model: ModelCard
    head: HeadCard
    times_ended = 0
    """How often workers have been ended while others go on: a caller that has called one must look again."""

    def __init__(
        self,
        config: EngineConfig,
        head: Head,
        run_dir: str,
        ask_for: Callable[[int], None],
        rows_each: int | None,
        first_number: int = 0,
    ) -> None:
        self._first_number = first_number
        self._config, self._estimate, self._ask_for = with_key(config), in_pieces(head), ask_for
        # Those of a start before in this folder are no part of this one.
        self._run_dir, self._start = run_dir, uuid4().hex
        self._handles: list[Any] = []
        self._cards: list[Any] = []
        self._rows_each = rows_each
        self.start_seconds = 0.0

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def each(self) -> tuple[EngineActors, ...]:
        """The engines of the run one by one: of one engine this alone."""
        return (self,)

    @property
    def workers(self) -> Workers:
        """What callers need to know: those of the start, and how to find those that were added."""
        return Workers(
            tuple(self._handles[: self._config.workers]),
            is_worker_death,
            _restart,
            self._config.stall_seconds,
            find=None
            if self._rows_each is None
            else partial(_find_worker, self._run_dir, self._start, self._first_number),
            rows_each=self._rows_each,
        )

    def _name(self, place: int) -> str:
        return worker_name(self._run_dir, self._start, self._first_number + place)

    def oddities(self) -> dict[str, int]:
        """Return what should be known of their answers, as far as those that are there can tell: see `EngineWorker`."""
        found: Counter[str] = Counter()
        for answer in [handle.oddities.remote() for handle in self._handles]:
            with suppress(RayError):  # it has died, or does not answer: what is said is for a reader
                found.update(ray.get(answer, timeout=_TELL_SECONDS))
        return dict(found)

    def up(self) -> int:
        """Return how many have loaded their model."""
        ready, _ = ray.wait(self._cards, num_returns=len(self._cards), timeout=0)
        return len(ready)

    def resize(self, count: int) -> None:
        """Start workers, or end the last ones, until there are `count`; returns before they have loaded their models."""
        # num_cpus=0: a worker that reserves its GPU's node's last CPU would starve Ray Data's own tasks.
        actor: Any = ray.remote(BatchEngineWorker)
        options = {
            "num_gpus": self._config.num_gpus or 0,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": CALLS_IN_FLIGHT,
        }
        self.times_ended += len(self._handles) > count
        while len(self._handles) > count:
            self._cards.pop()
            ray.kill(self._handles.pop())
            forget_share(self._name(len(self._handles)))
        self._ask_for(count)
        while len(self._handles) < count:
            name = self._name(len(self._handles))
            self._handles.append(actor.options(name=name, **options).remote(self._config, *self._estimate))
            self._cards.append(self._handles[-1].cards.remote())

    def wait(
        self, is_wanted: Callable[[], bool] = lambda: True, told: Callable[[float | None], None] = lambda _: None
    ) -> None:
        """Wait until every model is loaded, and note its card and how long that took.

        Args:
            is_wanted: Asked a few times a second whether to go on waiting.
            told: Hears as often which share of its weights the first worker has read that is not up; None where it does not
                tell.

        Raises:
            EngineError: A worker could not be started; the reason is in it. Or it was no longer waited for.
        """
        started, loading = time.monotonic(), list(self._cards)
        try:
            while loading and time.monotonic() < started + _LOAD_TIMEOUT_SECONDS and is_wanted():
                loaded, loading = ray.wait(loading, num_returns=1, timeout=_LOOK_SECONDS)
                ray.get(loaded)  # the first that fails ends the wait for the others
                if loading:
                    told(share_loaded(self._name(self._cards.index(loading[0]))))
            cards = ray.get(self._cards, timeout=_LOOK_SECONDS)
        except Exception as error:
            raise cause_of(error) from error
        self.model, self.head = cards[0]
        self.start_seconds = time.monotonic() - started


class BatchEngineWorker(EngineWorker):
    """An `EngineWorker` that Ray starts again when its engine has failed, with all that was running charged and tried again.

    Its `cards` raises what its constructor would: of an actor's constructor only a text comes back.

    Args:
        config: Which engine.
        head_pieces: What `in_pieces` made of its head.
    """

    gather_seconds = 0.02  # each list is a call to the caller, and one of it to the market

    def __init__(self, config: EngineConfig, *head_pieces: bytes) -> None:
        self._refusal: ClearRayError | None = None
        name = str(ray.get_runtime_context().get_actor_name() or "") if ray.is_initialized() else ""
        told = told_through_ray(name) if name else lambda _: None
        try:
            super().__init__(config, pickle.loads(b"".join(head_pieces)), told=told)  # noqa: S301 - of the driver, by Ray
        except Exception as error:
            # It has worked before: callers wait for it, and Ray repeats no constructor that raises.
            if _is_started_again():
                time.sleep(_RELOAD_SECONDS)
                print(f"the engine does not come back: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            if not isinstance(error, ClearRayError):
                raise
            self._refusal = error
            return
        if name:
            run_dir = name.partition(" of ")[2].rpartition(" ")[0]
            watch_engine(self.occupancy, "batch", run_dir.rpartition("/")[2])

    async def cards(self) -> tuple[ModelCard, HeadCard]:
        """Return the cards of the model and the head.

        Raises:
            ConfigError: The head was fitted for another model, or a setting does not fit the model.
            EngineError: The model cannot be loaded.
            SchemaError: A recording cannot be read.
        """
        if self._refusal is not None:
            raise self._refusal
        await self._stop_if_failed()  # what asks whether it is up again must not be told that it is
        return await super().cards()

    def _fail(self, failure: Exception) -> None:
        """End the process once it has said why: callers find out which query the engine fails of."""
        if self.failure is not None:
            return
        super()._fail(failure)
        why = getattr(failure, "value", "") or f"{type(failure).__name__}: {failure}"
        print(f"the engine has failed: {why}", file=sys.stderr, flush=True)
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, 1)

    async def _stop_if_failed(self) -> None:
        if self.failure is not None:
            await asyncio.Event().wait()  # until the process ends


def in_pieces(head: Head) -> list[bytes]:
    """Return a head in pieces that Ray keeps with an actor."""
    return pieces_of(pickle.dumps(head))


def _is_started_again() -> bool:
    """Return whether this is an actor that Ray has restarted."""
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


@contextmanager
def begun_engines(
    config: EngineConfig,
    head: Head,
    *,
    run_dir: str,
    ask_for: Callable[[int], None] = lambda _: None,
    rows_each: int | None = None,
) -> Iterator[EngineActors]:
    """Start the engine workers, which then load their models, and end them afterwards; arguments as of `EngineActors`.

    Raises:
        ClusterError: The cluster is full.
    """
    wait_for_room(config)
    engines = EngineActors(config, head, run_dir, ask_for, rows_each)
    try:
        engines.resize(config.workers)
        yield engines
    finally:
        engines.resize(0)


@contextmanager
def engine_workers(config: EngineConfig, head: Head, **options: Any) -> Iterator[EngineActors]:
    """Do what `begun_engines` does, with its options, and wait until all models are loaded.

    Raises:
        ClusterError: The cluster is full.
        ClearRayError: A worker could not be started, as it was raised there.
        EngineError: It could not be started for another reason.
    """
    with begun_engines(config, head, **options) as engines:
        engines.wait()
        yield engines


def worker_name(run_dir: str, start: str, number: int) -> str:
    """Return the actor name of an engine worker of a run's start; worker `number` counts from 0."""
    return f"clear_ray engine {number} of {run_dir} {start}"


def this_actor() -> str:
    """Return the id of the actor that this process is, the same after a restart; empty if it is none."""
    return ray.get_runtime_context().get_actor_id() or ""


def is_worker_death(error: BaseException) -> bool:
    """Tell an engine that died, is about to or cannot be reached from one that raised an error of its own."""
    return isinstance(error, _DEATHS) or isinstance(own_error(error), EngineFailedError)


def _find_worker(run_dir: str, start: str, first_number: int, number: int) -> Any | None:
    """Return a worker of one engine's start, or None if none was started under the number, from 0."""
    try:
        return ray.get_actor(worker_name(run_dir, start, first_number + number))
    except ValueError:
        return None


def _restart(worker: Any) -> None:
    """Kill a worker's process and have Ray start it again."""
    ray.kill(worker, no_restart=False)


def cause_of(error: BaseException) -> ClearRayError:
    """Return the error of ours that an actor raised, or an EngineError that says what Ray said."""
    return own_error(error) or EngineError(
        "an actor could not be started",
        value=str(error).strip().splitlines()[-1] if str(error).strip() else repr(error),
        remedy="Check the engine section of the configuration and the actor's log.",
    )
