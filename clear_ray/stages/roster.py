"""Which engine workers a caller may call: the least busy of those that are up, and what to do about one that hangs.

Where their number changes, those that are started meanwhile are found and called as soon as they answer, and a call waits
for room on a worker that is up before it reserves anything: what waits is not bound to those that came first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from clear_ray.errors import EngineError

_PAUSE_SECONDS = 0.5
_LOOKS_PER_STALL = 8
_FIND_SECONDS = 1.0
_HOME_CALLS = 1  # so many more may be open where the prompts were read than elsewhere


@dataclass(frozen=True, slots=True)
class Workers:
    """The engine workers of a run, and how their handles behave.

    Attributes:
        handles: Handles of `EngineWorker` actors that are up.
        is_death: Tells a dead or unreachable worker from an error of its own.
        restart: Kills a worker and has it started again; its open calls end as a death does.
        stall_seconds: How long a worker that has work may bring nothing forward.
        find: Returns the worker of a number, from 0, once it has been started; None if their number is fixed.
        rows_each: Most queries of a caller's open calls for each worker that is up; None for no such bound.
    """

    handles: Sequence[Any]
    is_death: Callable[[BaseException], bool]
    restart: Callable[[Any], None]
    stall_seconds: float
    find: Callable[[int], Any | None] | None = None
    rows_each: int | None = None


class Roster:
    """The workers of a run as one caller sees them.

    A worker that died is called again only once it has answered: what is sent to one that is still loading its model
    fails, and what was reserved for it would be charged for nothing. One that hangs, or whose process no longer answers,
    is made to die.

    Args:
        workers: The workers.
        patience_seconds: How long a worker may take to come back, its model's loading included.
    """

    def __init__(self, workers: Workers, *, patience_seconds: float = 1_800.0) -> None:
        self._all, self._workers, self._patience_seconds = workers, list(workers.handles), patience_seconds
        self._calls = [0] * len(self._workers)
        self._is_up = [True] * len(self._workers)
        self._turn = self._times_ended = 0
        self._changed = asyncio.Condition()
        self._returning: dict[int, asyncio.Task[None]] = {}
        self._watching: dict[int, asyncio.Task[None]] = {}
        self._lost: EngineError | None = None
        self._open, self._freed = 0, asyncio.Condition()
        self._finding: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def room(self, rows: int = 1) -> AsyncIterator[None]:
        """Wait until the workers that are up have room for a call of so many queries, and keep it; at once if unbounded."""
        if self._all.rows_each is None:
            yield
            return
        if self._all.find is not None and self._finding is None:
            self._finding = asyncio.ensure_future(self._find(self._all.find))
        async with self._freed:
            await self._freed.wait_for(lambda: self._has_room(rows))
            self._open += rows
        try:
            yield
        finally:
            async with self._freed:
                self._open -= rows
                self._freed.notify_all()

    def look_again(self, times_ended: int) -> None:
        """Call no worker that was added before some were ended, until it is found again.

        A call to one that was ended fails, and what was reserved for it is charged for nothing. None is ended while calls
        are open.

        Args:
            times_ended: How often workers have been ended.
        """
        if times_ended > self._times_ended:
            self._times_ended = times_ended
            for number in range(len(self._all.handles), len(self._workers)):
                self._mark_down(number)

    def _has_room(self, rows: int) -> bool:
        most = (self._all.rows_each or 1) * sum(self._is_up)
        return self._lost is not None or self._open + rows <= most or (not self._open and most > 0)

    @asynccontextmanager
    async def worker(self, home: int | None = None) -> AsyncIterator[Any]:
        """Yield the least busy worker that is up, or its home if that is hardly busier; mark it as down if it dies meanwhile.

        Args:
            home: The worker that has read the prompts.

        Raises:
            EngineError: A worker did not come back in time.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._lost is not None or any(self._is_up))
        if self._lost is not None:
            raise self._lost
        number = self._least_busy()
        if home is not None and home < len(self._workers) and self._is_up[home]:
            number = home if self._calls[home] <= self._calls[number] + _HOME_CALLS else number
        self._calls[number] += 1
        if number not in self._watching:
            self._watching[number] = asyncio.ensure_future(self._watch(number))
        try:
            yield self._workers[number]
        except Exception as error:
            if self._all.is_death(error):
                self._mark_down(number)
            raise
        finally:
            self._calls[number] -= 1
            if not self._calls[number]:
                self._watching.pop(number).cancel()

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

    async def _watch(self, number: int) -> None:
        """Look at a worker while calls are open; restart it if it has work and nothing moves."""
        worker, look_seconds = self._workers[number], self._all.stall_seconds / _LOOKS_PER_STALL
        last, moved = None, time.monotonic()
        while self._is_up[number]:
            await asyncio.sleep(look_seconds)
            try:
                async with asyncio.timeout(look_seconds):
                    pulse = await worker.pulse.remote()
            except TimeoutError:
                pulse = last or 0  # a process that does not answer has work: its calls are open
            except Exception as error:
                if self._all.is_death(error):
                    return  # its calls say so too
                raise
            if pulse is None or pulse != last:
                last, moved = pulse, time.monotonic()
            elif time.monotonic() - moved >= self._all.stall_seconds:
                self._all.restart(worker)
                self._mark_down(number)

    async def _find(self, find: Callable[[int], Any | None]) -> None:
        """Take in workers that are started while this caller runs; one that never comes up is never called."""
        while True:
            number = len(self._workers)
            worker = await asyncio.to_thread(find, number)
            if worker is None:
                await asyncio.sleep(_FIND_SECONDS)
                continue
            self._workers.append(worker)
            self._calls.append(0)
            self._is_up.append(False)
            self._returning[number] = asyncio.ensure_future(self._await_return(number))

    async def _await_return(self, number: int) -> None:
        """Call a worker that is down until it answers.

        Ray keeps the call while a model is loading, so one that lives and does not answer is restarted only when its patience
        is over, by whichever caller finds that first, and has as long once more. One that the run does not need is waited
        for without end.
        """
        is_needed, is_restarted = number < len(self._all.handles), False
        deadline = time.monotonic() + self._patience_seconds
        while True:
            if not is_needed and self._all.find is not None:  # it may be another by now, or none
                if (found := await asyncio.to_thread(self._all.find, number)) is None:
                    await asyncio.sleep(_FIND_SECONDS)
                    continue
                self._workers[number] = found
            asked = time.monotonic()
            try:
                async with asyncio.timeout(max(_PAUSE_SECONDS, deadline - asked)):
                    await self._workers[number].cards.remote()
                break
            except Exception as error:  # whatever it is, it is not up; a model that fails to load raises its own error
                is_silent = isinstance(error, TimeoutError)
                was_silent = is_silent or time.monotonic() - asked > self._patience_seconds / 2
                if is_needed and was_silent and not is_restarted:
                    if is_silent:  # else another caller has restarted it
                        self._all.restart(self._workers[number])
                    is_restarted, deadline = True, time.monotonic() + self._patience_seconds
                elif is_needed and time.monotonic() > deadline:
                    reason = "it lives and does not answer, though it was restarted" if is_silent else repr(error)
                    self._lost = EngineError("an engine worker did not come back", f"worker {number}", reason)
                    break
                await asyncio.sleep(_PAUSE_SECONDS)
        async with self._changed:
            self._is_up[number] = self._lost is None
            self._changed.notify_all()
        async with self._freed:
            self._freed.notify_all()
