"""An engine that hangs is made to die; one that works, or has nothing to do, is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from clear_ray.stages.roster import Roster, Workers
from tests.unit.local_actors import LocalActor

STALL_SECONDS = 0.2


class RestartedError(Exception):
    """What a call to a worker gets when the worker is killed under it."""


class Process:
    """A worker's process as a caller sees it: its pulse is what `beat` says, its calls end when it is killed."""

    def __init__(self, beat: Callable[[], int | None]) -> None:
        self.beat = beat
        self.killed = asyncio.Event()
        self.deaths = 0

    async def pulse(self) -> int | None:
        return self.beat()

    async def cards(self) -> None:
        """Up again at once."""

    async def work(self, seconds: float) -> str:
        try:
            await asyncio.wait_for(self.killed.wait(), timeout=seconds)
        except TimeoutError:
            return "done"
        raise RestartedError

    def die(self) -> None:
        self.deaths += 1
        self.killed.set()
        self.killed = asyncio.Event()


class Frozen(Process):
    """A process that was stopped: it does not even answer."""

    async def pulse(self) -> int | None:
        await asyncio.sleep(3_600)
        return None


def count() -> Callable[[], int]:
    beats = iter(range(1_000_000))
    return lambda: next(beats)


async def call(process: Process, *, seconds: float) -> str | Exception:
    """Have a worker work, and return how that ended."""
    workers = Workers(
        [LocalActor(process)],
        is_death=lambda error: isinstance(error, RestartedError),
        restart=lambda handle: handle.actor.die(),
        stall_seconds=STALL_SECONDS,
    )
    roster = Roster(workers)
    try:
        async with roster.worker() as worker:
            done: str = await worker.work.remote(seconds)
    except RestartedError as error:
        async with roster.worker() as again:  # only had once the worker answers
            assert await again.work.remote(0) == "done"
        return error
    return done


@pytest.mark.parametrize("make", [lambda: Process(lambda: 7), lambda: Frozen(count())], ids=["wedged", "frozen"])
def test_a_worker_that_hangs_is_restarted_and_called_again(make: Callable[[], Process]) -> None:
    async def hang() -> tuple[Any, int]:
        process = make()
        return await call(process, seconds=60), process.deaths

    outcome, deaths = asyncio.run(hang())
    assert isinstance(outcome, RestartedError)
    assert deaths == 1


@pytest.mark.parametrize("beat", [count(), lambda: None], ids=["working", "nothing to do"])
def test_a_worker_that_moves_or_rests_is_left_alone(beat: Callable[[], int | None]) -> None:
    async def work() -> tuple[Any, int]:
        process = Process(beat)
        return await call(process, seconds=4 * STALL_SECONDS), process.deaths

    assert asyncio.run(work()) == ("done", 0)
