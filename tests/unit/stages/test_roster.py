"""An engine that hangs is made to die; one that works, or has nothing to do, is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from clear_ray.errors import EngineError
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


def test_a_call_goes_home_unless_that_is_busier_or_down() -> None:
    handles = [LocalActor(Process(count())) for _ in range(3)]
    workers = Workers(handles, lambda error: isinstance(error, RestartedError), lambda _: None, 60.0)

    async def placed() -> list[int]:
        roster = Roster(workers)
        async with AsyncExitStack() as calls:
            homes = (1, 1, 1, 1, 7)
            places = [handles.index(await calls.enter_async_context(roster.worker(home))) for home in homes]
        with pytest.raises(RestartedError):
            async with roster.worker(1):
                raise RestartedError
        async with roster.worker(1) as elsewhere:
            return [*places, handles.index(elsewhere)]

    first, second, third, fourth, stranger, last = asyncio.run(placed())
    assert (first, second) == (1, 1), "one call more than elsewhere is no matter"
    assert {third, fourth} == {0, 2}, "two are"
    assert stranger in (0, 2), "there is no such home"
    assert last != 1, "it is down"


class Silent(Process):
    """A process that lives after its death and answers nothing before it has died so many times."""

    def __init__(self, deaths: int) -> None:
        super().__init__(lambda: None)
        self._deaths = deaths

    async def cards(self) -> None:
        if self.deaths < self._deaths:
            await asyncio.sleep(3_600)


async def come_back(process: Process, *, patience_seconds: float) -> None:
    """Have a worker die and wait until it can be called again."""
    workers = Workers(
        [LocalActor(process)], lambda error: isinstance(error, RestartedError), lambda handle: handle.actor.die(), 60.0
    )
    roster = Roster(workers, patience_seconds=patience_seconds)
    with pytest.raises(RestartedError):
        async with roster.worker():
            raise RestartedError
    async with asyncio.timeout(30), roster.worker():
        pass


def test_a_worker_that_lives_but_does_not_come_back_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._PAUSE_SECONDS", 0.01)
    process = Silent(deaths=1)
    asyncio.run(come_back(process, patience_seconds=0.1))
    assert process.deaths == 1


def test_a_worker_that_is_silent_even_then_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._PAUSE_SECONDS", 0.01)
    process = Silent(deaths=9)
    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(come_back(process, patience_seconds=0.1))
    assert process.deaths == 1


def test_a_worker_that_another_caller_restarts_has_its_patience_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._PAUSE_SECONDS", 0.01)

    async def restart_by_another() -> int:
        process, started = Process(lambda: None), asyncio.get_running_loop().time()

        async def cards() -> (
            None
        ):  # it is silent, is killed shortly before its patience is over, and is up again a little later
            if asyncio.get_running_loop().time() < started + 0.8:
                await asyncio.sleep(0.8)
            if asyncio.get_running_loop().time() < started + 1.5:
                raise RestartedError

        process.cards = cards  # type: ignore[method-assign]
        await come_back(process, patience_seconds=1.0)
        return process.deaths

    assert asyncio.run(restart_by_another()) == 0


def test_a_worker_that_is_loading_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._PAUSE_SECONDS", 0.01)

    async def load() -> int:
        process = Process(lambda: None)
        process.cards = lambda: asyncio.sleep(0.5)  # type: ignore[method-assign]
        await come_back(process, patience_seconds=30.0)
        return process.deaths

    assert asyncio.run(load()) == 0


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


class Crowd:
    """Workers that are started one by one, and that callers find by their number."""

    def __init__(self) -> None:
        self.started: list[LocalActor] = []
        self.may_answer = asyncio.Event()
        self.start(is_up=True)

    def start(self, *, is_up: bool) -> None:
        process = Process(lambda: None)
        if not is_up:
            process.cards = self.may_answer.wait  # type: ignore[method-assign]  # it is loading its model
        self.started.append(LocalActor(process))

    def find(self, number: int) -> LocalActor | None:
        return self.started[number] if number < len(self.started) else None

    def roster(self, *, rows_each: int) -> Roster:
        return Roster(
            Workers(self.started[:1], lambda _: False, lambda _: None, 60.0, find=self.find, rows_each=rows_each)
        )


def test_a_worker_that_is_started_later_gets_the_calls_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._FIND_SECONDS", 0.01)

    async def play() -> None:
        crowd, called, may_end = Crowd(), [], asyncio.Event()
        roster = crowd.roster(rows_each=2)

        async def one_call() -> None:
            async with roster.room(), roster.worker() as worker:
                called.append(crowd.started.index(worker))
                await may_end.wait()

        calls = [asyncio.ensure_future(one_call()) for _ in range(7)]
        await until(lambda: len(called) == 2)
        crowd.start(is_up=False)
        await asyncio.sleep(0.1)
        assert called == [0, 0], "five calls wait for room, and none is bound to a worker"
        crowd.may_answer.set()
        await until(lambda: len(called) == 4)
        assert called == [0, 0, 1, 1]
        may_end.set()
        await asyncio.gather(*calls)
        assert sorted(called) != [0] * 7

    asyncio.run(play())


def test_a_worker_that_never_comes_up_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._FIND_SECONDS", 0.01)

    async def play() -> list[int]:
        crowd = Crowd()
        crowd.start(is_up=False)
        roster, called = crowd.roster(rows_each=1), []
        for _ in range(3):
            async with roster.room(), roster.worker() as worker:
                called.append(crowd.started.index(worker))
                await asyncio.sleep(0.05)
        return called

    assert asyncio.run(play()) == [0, 0, 0]


def test_a_worker_that_was_ended_is_not_called_until_it_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.stages.roster._FIND_SECONDS", 0.01)

    async def play() -> list[list[int]]:
        crowd = Crowd()
        crowd.start(is_up=True)
        roster, called = crowd.roster(rows_each=8), []

        async def four_calls() -> list[int]:
            numbers = []
            for _ in range(4):
                async with roster.room(), roster.worker() as worker:
                    numbers.append(crowd.started.index(worker))
            return numbers

        async def both_are_called() -> None:
            while 1 not in await four_calls():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(both_are_called(), 10)
        del crowd.started[1]
        roster.look_again(1)
        called.append(await four_calls())
        crowd.start(is_up=True)
        await asyncio.wait_for(both_are_called(), 10)
        roster.look_again(1)  # said by every call after it
        called.append(sorted(set(await four_calls())))
        return called

    assert asyncio.run(play()) == [[0, 0, 0, 0], [0, 1]]
