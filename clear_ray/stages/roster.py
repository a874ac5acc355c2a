"""Which engine workers a caller may call: the least busy of those that are up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from clear_ray.errors import EngineError

_PAUSE_SECONDS = 0.5


class Roster:
    """The workers of a run as one caller sees them.

    A worker that died is called again only once it has answered: what is sent to one that is still loading its model
    fails, and what was reserved for it would be charged for nothing.

    Args:
        workers: Handles of `EngineWorker` actors.
        is_worker_death: Tells a dead or unreachable worker from an error of its own.
        patience_seconds: How long a worker may take to come back.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        is_worker_death: Callable[[BaseException], bool],
        *,
        patience_seconds: float = 1_800.0,
    ) -> None:
        self._workers, self._is_worker_death, self._patience_seconds = workers, is_worker_death, patience_seconds
        self._calls = [0] * len(workers)
        self._is_up = [True] * len(workers)
        self._turn = 0
        self._changed = asyncio.Condition()
        self._returning: dict[int, asyncio.Task[None]] = {}
        self._lost: EngineError | None = None

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Any]:
        """Yield the least busy worker that is up; mark it as down if it dies in the meantime.

        Raises:
            EngineError: A worker did not come back in time.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._lost is not None or any(self._is_up))
        if self._lost is not None:
            raise self._lost
        number = self._least_busy()
        self._calls[number] += 1
        try:
            yield self._workers[number]
        except Exception as error:
            if self._is_worker_death(error):
                self._mark_down(number)
            raise
        finally:
            self._calls[number] -= 1

    def _least_busy(self) -> int:
        """Return the number of a worker that is up; equals take turns."""
        count = len(self._workers)
        self._turn = (self._turn + 1) % count
        up = [number for number in range(count) if self._is_up[number]]
        return min(up, key=lambda number: (self._calls[number], (number - self._turn) % count))

    def _mark_down(self, number: int) -> None:
        if self._is_up[number]:
            self._is_up[number] = False
            self._returning[number] = asyncio.ensure_future(self._await_return(number))

    async def _await_return(self, number: int) -> None:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                await self._workers[number].cards.remote()
                break
            except Exception as error:  # whatever it is, it is not up; a model that fails to load raises its own error
                if time.monotonic() > deadline:
                    self._lost = EngineError("an engine worker did not come back", f"worker {number}", repr(error))
                    break
                await asyncio.sleep(_PAUSE_SECONDS)
        async with self._changed:
            self._is_up[number] = self._lost is None
            self._changed.notify_all()
