"""The callers of both stages, which live as long as the run: thin actors that keep the engines fed.

A call is some grants that go to an engine together, or a block of prompts to be read. Each caller has a few calls open,
and the next one goes to it when one comes back. Ray starts a caller that died again and repeats its calls,
which a caller answers from the disk where it can.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clear_ray.cluster.engines import CALLS_IN_FLIGHT
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.granted import GrantedCall, RunRows
from clear_ray.stages.probe_files import ProbeCall, ProbeToFiles
from clear_ray.stages.roster import Workers
from clear_ray.storage import Folder


class GenerateActor(GenerateToFiles):
    """`GenerateToFiles` as an actor that Ray may start again.

    Args:
        pickled: The dispatch, by Ray's pickle: handles that are arguments themselves make Ray warn that they may be gone
            when an actor is started again. These live as long as the run.
        folder: See `GenerateToFiles`.
        rows_per_file: See `GenerateToFiles`.
    """

    def __init__(self, pickled: bytes, folder: Folder, *, rows_per_file: int) -> None:
        super().__init__(ray.cloudpickle.loads(pickled), folder, rows_per_file=rows_per_file)
        self._probing = ProbeToFiles(self._dispatch.workers, self._rows, self._turn)

    async def probe(self, call: ProbeCall) -> int:
        """See `ProbeToFiles.probe`."""
        return await self._probing.probe(call)


class ProbeActor(ProbeToFiles):
    """`ProbeToFiles` as an actor that Ray may start again, where nothing is generated.

    Args:
        pickled: The engine workers, as for `GenerateActor`.
        folder: The run folder.
    """

    def __init__(self, pickled: bytes, folder: Folder) -> None:
        super().__init__(ray.cloudpickle.loads(pickled), RunRows(folder), asyncio.Lock())


class SomeCall(Protocol):
    """What goes to a caller.

    Attributes:
        index_M: The queries that it is of.
        engine: Place of the engine that is called, where a run has several.
    """

    @property
    def index_M(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def engine(self) -> int: ...  # noqa: D102


Wait = Callable[..., tuple[list[Any], list[Any]]]
CallT = TypeVar("CallT", bound=SomeCall)
BackT = TypeVar("BackT")


class _Calls(Generic[CallT, BackT]):
    """Calls on their way to the callers, in order, and what came of them.

    Args:
        handles: The callers.
        rows_each: Queries in the open calls of one of them, unless a single call has more; of several engines for each.
        wait: Waits for some of several references, as `ray.wait` does.
        get: Returns what a reference stands for, as `ray.get` does.
        engine_of: Place of the engine that each caller calls; the first of all if not given.
    """

    def __init__(
        self,
        handles: list[Any],
        rows_each: int | Sequence[int],
        wait: Wait = ray.wait,
        get: Callable[[Any], Any] = ray.get,
        *,
        engine_of: Sequence[int] | None = None,
    ) -> None:
        self._handles, self._rows_each = handles, [rows_each] if isinstance(rows_each, int) else list(rows_each)
        self._wait, self._get = wait, get
        self._callers_of = [
            [number for number, of in enumerate(engine_of or [0] * len(handles)) if of == engine]
            for engine in range(len(self._rows_each))
        ]
        self._waiting: list[deque[CallT]] = [deque() for _ in self._rows_each]
        self._open_calls: dict[Any, tuple[int, CallT]] = {}
        self.waiting_rows = 0
        self._open = [0] * len(handles)

    def __len__(self) -> int:
        """Return how many calls have not come back."""
        return sum(map(len, self._waiting)) + len(self._open_calls)

    @property
    def open_rows(self) -> int:
        """Queries in calls that a caller has."""
        return sum(self._open)

    def send(self, call: CallT) -> None:
        """Have a call made after those that were sent before."""
        self._waiting[call.engine].append(call)
        self.waiting_rows += len(call.index_M)
        self._fill()

    def come_back(self, seconds: float | None = None) -> Iterator[tuple[CallT, BackT]]:
        """Yield calls that are back, after waiting for the first, each with what came of it.

        Args:
            seconds: How long to wait for it; None for as long as it takes.
        """
        if not self._open_calls:
            return
        references = list(self._open_calls)
        back, _ = self._wait(references, num_returns=1, timeout=seconds)
        if back:
            back, _ = self._wait(references, num_returns=len(references), timeout=0)
        calls = []
        for reference in back:
            number, call = self._open_calls.pop(reference)
            self._open[number] -= len(call.index_M)
            calls.append(call)
        self._fill()
        for call, reference in zip(calls, back, strict=True):
            yield call, self._get(reference)

    def _fill(self) -> None:
        for waiting, callers, rows_each in zip(self._waiting, self._callers_of, self._rows_each, strict=True):
            while waiting:
                call, number = waiting[0], min(callers, key=self._open.__getitem__)
                if self._open[number] and self._open[number] + len(call.index_M) > rows_each:
                    break
                self._open_calls[self._begin(self._handles[number], call)] = number, call
                self._open[number] += len(call.index_M)
                self.waiting_rows -= len(call.index_M)
                waiting.popleft()

    def _begin(self, handle: Any, call: CallT) -> Any:
        """Make a call; return its reference."""
        raise NotImplementedError


class Callers(_Calls[GrantedCall, pa.Table]):
    """Calls of stage 2; what comes back is in `SLIM_ATTEMPT_SCHEMA`."""

    def _begin(self, handle: Any, call: GrantedCall) -> Any:
        return handle.generate.remote(call)

    def for_probe(self, rows_each: int, *, engine: int = 0) -> ProbeCallers:
        """Return the callers of an engine for calls of stage 1."""
        return ProbeCallers([self._handles[number] for number in self._callers_of[engine]], rows_each)


class ProbeCallers(_Calls[ProbeCall, int]):
    """Calls of stage 1; what comes back is how many estimates are on disk."""

    def _begin(self, handle: Any, call: ProbeCall) -> Any:
        return handle.probe.remote(call)


@contextmanager
def generate_callers(
    dispatches: Sequence[Dispatch], folder: Folder, *, callers: int, rows_each: Sequence[int], rows_per_file: int
) -> Iterator[Callers]:
    """Start the callers of a run, and end them afterwards.

    Args:
        dispatches: See `Generate`; of each engine.
        folder: The run folder.
        callers: How many of each engine.
        rows_each: As for `Callers`, of each engine.
        rows_per_file: See `AttemptFiles`.
    """
    pickle: Any = ray.cloudpickle
    with ExitStack() as started:
        handles = [
            started.enter_context(
                _actors(GenerateActor, callers, pickle.dumps(dispatch), folder, rows_per_file=rows_per_file)
            )
            for dispatch in dispatches
        ]
        engine_of = [engine for engine, of_one in enumerate(handles) for _ in of_one]
        yield Callers([handle for of_one in handles for handle in of_one], rows_each, engine_of=engine_of)


@contextmanager
def probe_callers(workers: Workers, folder: Folder, *, callers: int, rows_each: int) -> Iterator[ProbeCallers]:
    """Start callers that have prompts read and nothing generated, and end them afterwards.

    Args:
        workers: See `Probe`.
        folder: The run folder.
        callers: How many.
        rows_each: As for `Callers`.
    """
    pickle: Any = ray.cloudpickle
    pickled: bytes = pickle.dumps(workers)
    with _actors(ProbeActor, callers, pickled, folder) as handles:
        yield ProbeCallers(handles, rows_each)


@contextmanager
def _actors(kind: type, count: int, *arguments: Any, **settings: Any) -> Iterator[list[Any]]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # num_cpus=0: they live as long as the run, and would keep a CPU of a small machine from Ray Data's own tasks. What
    # reserves nothing keeps no node from being taken for idle, so a single one stays with the driver.
    actor: Any = ray.remote(kind).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=CALLS_IN_FLIGHT,
        scheduling_strategy=here if count == 1 else "SPREAD",
    )
    handles = [actor.remote(*arguments, **settings) for _ in range(count)]
    try:
        yield handles
    finally:
        for handle in handles:
            ray.kill(handle)
