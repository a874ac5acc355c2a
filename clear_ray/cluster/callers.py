"""The callers of stage 2, which live as long as the run: thin actors that keep the engines fed.

A call is some grants that go to an engine together. Each caller has a few calls open, and the next one goes to it when one
comes back. Ray starts a caller that died again and repeats its calls, which a caller answers from the disk where it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clear_ray.cluster.engines import CALLS_IN_FLIGHT
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.granted import GrantedCall
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
        pa.array(np.zeros(1))  # imports pandas, if it is there, for a third of a second: now, not amid the first grants


Wait = Callable[..., tuple[list[Any], list[Any]]]


class Callers:
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
        self._waiting: list[deque[Iterator[GrantedCall]]] = [deque() for _ in self._rows_each]
        self._next: list[GrantedCall | None] = [None] * len(self._rows_each)
        self._open_calls: dict[Any, tuple[int, GrantedCall]] = {}
        self.waiting_rows = 0
        self._open = [0] * len(handles)

    def __len__(self) -> int:
        """Return how many queries have not come back."""
        return self.waiting_rows + self.open_rows

    @property
    def open_rows(self) -> int:
        """Queries in calls that a caller has."""
        return sum(self._open)

    def send(self, calls: Iterable[GrantedCall], *, rows: int, engine: int = 0) -> None:
        """Have calls made after those that were sent before, each asked for when there is room for it.

        Args:
            calls: Calls of one engine.
            rows: How many queries they have together.
            engine: Place of the engine.
        """
        self._waiting[engine].append(iter(calls))
        self.waiting_rows += rows
        self._fill()

    def come_back(self, seconds: float | None = None) -> Iterator[tuple[GrantedCall, pa.Table]]:
        """Yield calls that are back, after waiting for the first, each with what came of it in `SLIM_ATTEMPT_SCHEMA`.

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
        for engine, (callers, rows_each) in enumerate(zip(self._callers_of, self._rows_each, strict=True)):
            while (call := self._first(engine)) is not None:
                number = min(callers, key=self._open.__getitem__)
                if self._open[number] and self._open[number] + len(call.index_M) > rows_each:
                    break
                self._open_calls[self._handles[number].generate.remote(call)] = number, call
                self._open[number] += len(call.index_M)
                self.waiting_rows -= len(call.index_M)
                self._next[engine] = None

    def _first(self, engine: int) -> GrantedCall | None:
        """Return the first call of an engine that waits; None if none does."""
        while self._next[engine] is None and self._waiting[engine]:
            self._next[engine] = next(self._waiting[engine][0], None)
            if self._next[engine] is None:
                self._waiting[engine].popleft()
        return self._next[engine]


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
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # num_cpus=0: they live as long as the run, and would keep a CPU of a small machine from Ray Data's own tasks. What
    # reserves nothing keeps no node from being taken for idle, so a single one stays with the driver.
    actor: Any = ray.remote(GenerateActor).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=CALLS_IN_FLIGHT,
        scheduling_strategy=here if callers == 1 else "SPREAD",
    )
    pickle: Any = ray.cloudpickle
    handles, engine_of = [], []
    for engine, dispatch in enumerate(dispatches):
        pickled: bytes = pickle.dumps(dispatch)
        handles += [actor.remote(pickled, folder, rows_per_file=rows_per_file) for _ in range(callers)]
        engine_of += [engine] * callers
    try:
        yield Callers(handles, rows_each, engine_of=engine_of)
    finally:
        for handle in handles:
            ray.kill(handle)
