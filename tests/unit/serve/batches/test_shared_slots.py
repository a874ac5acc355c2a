"""Places of an engine: interactive queries first, batches by their weights, and none of them waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from clear_ray.engine.base import Generation, Grant
from clear_ray.serve.batches.shared_slots import SharedSlots


class Engine:
    """Holds every grant until it is told; counts what runs."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.most = 0

    async def generate(self, grants: Sequence[Grant], is_alone: bool) -> AsyncIterator[list[Generation]]:
        assert not is_alone
        for grant in grants:
            self.running[grant.query_id] = asyncio.Event()
            self.begun.append(grant.query_id)
        self.most = max(self.most, len(self.running))
        left = {grant.query_id for grant in grants}
        try:
            while left:
                await asyncio.sleep(0)
                for name in [name for name in left if self.running[name].is_set()]:
                    left.remove(name)
                    del self.running[name]
                    yield [Generation(name, (1,), "x", "stop")]
        finally:
            for name in left:
                del self.running[name]

    def end_oldest(self) -> None:
        for event in self.running.values():
            if not event.is_set():
                event.set()
                return


def grants(batch: str, count: int, tokens: int = 10) -> list[Grant]:
    return [Grant(f"{batch}{k}", "", tokens) for k in range(count)]


async def collect(slots: SharedSlots, engine: Engine, batch: str, weight: float, some: list[Grant]) -> list[str]:
    ran = slots.run(batch, weight, some, engine.generate, is_alone=False)
    return [each.query_id async for generations in ran for each in generations]


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until_done(engine: Engine, *tasks: asyncio.Task[list[str]]) -> None:
    while not all(task.done() for task in tasks):
        await turns()
        if engine.running:
            engine.end_oldest()


async def test_a_batch_leaves_places_and_takes_back_what_others_leave() -> None:
    slots, engine = SharedSlots(8, kept=2), Engine()
    task = asyncio.create_task(collect(slots, engine, "a", 1.0, grants("a", 30)))
    await turns()
    assert len(engine.running) == 6
    for _ in range(4):
        slots.enter()
    for _ in range(5):  # what runs goes on; what ends is not replaced before there is room
        engine.end_oldest()
        await turns()
    assert len(engine.running) == 2
    for _ in range(100):
        slots.enter()
    engine.end_oldest()
    await turns()
    assert len(engine.running) == 1, "a batch always has a place"
    for _ in range(104):
        slots.leave()
    await turns()
    assert len(engine.running) == 6
    await until_done(engine, task)
    assert sorted(task.result()) == sorted(grant.query_id for grant in grants("a", 30))
    assert slots.places == 6


@pytest.mark.parametrize(("weights", "share"), [((1.0, 1.0), 0.5), ((3.0, 1.0), 0.75), ((0.25, 1.0), 0.2)])
async def test_places_go_by_weight(weights: tuple[float, float], share: float) -> None:
    slots, engine = SharedSlots(4, kept=0), Engine()
    tasks = [
        asyncio.create_task(collect(slots, engine, name, weight, grants(name, 10 * 40)[part * 40 : part * 40 + 40]))
        for part in range(10)
        for name, weight in zip("ab", weights, strict=True)
    ]
    await turns()
    for _ in range(200):
        engine.end_oldest()
        await turns(8)
    begun = engine.begun[:200]
    assert sum(name.startswith("a") for name in begun) / len(begun) == pytest.approx(share, abs=0.06)
    assert engine.most == 4
    await until_done(engine, *tasks)
    assert sum(len(task.result()) for task in tasks) == 800


async def test_one_that_comes_later_begins_where_the_others_stand() -> None:
    slots, engine = SharedSlots(2, kept=0), Engine()
    first = [asyncio.create_task(collect(slots, engine, "a", 1.0, grants(f"a{k}.", 50))) for k in range(4)]
    await turns()
    for _ in range(100):
        engine.end_oldest()
        await turns(8)
    before = len(engine.begun)
    second = [asyncio.create_task(collect(slots, engine, "b", 1.0, grants(f"b{k}.", 50))) for k in range(4)]
    await turns()
    for _ in range(60):
        engine.end_oldest()
        await turns(8)
    since = engine.begun[before:]
    assert 20 <= sum(name.startswith("b") for name in since) <= 40, since
    await until_done(engine, *first, *second)


async def test_calls_that_wait_run_in_few_pieces() -> None:
    """Where places come back together, a call has as many of them as it can use; what ends together travels together."""
    pieces = list[int]()

    async def play(some: Sequence[Grant], is_alone: bool) -> AsyncIterator[list[Generation]]:
        pieces.append(len(some))
        await asyncio.sleep(0)
        for grant in some:
            yield [Generation(grant.query_id, (1,), "x", "stop")]

    async def lists(slots: SharedSlots, number: int) -> int:
        ran = slots.run("a", 1.0, grants(f"a{number}.", 16), play, is_alone=False)
        return len([generations async for generations in ran])

    slots = SharedSlots(40, kept=0)
    told = await asyncio.gather(*(lists(slots, number) for number in range(20)))
    assert sum(pieces) == 20 * 16
    assert len(pieces) <= 4 * 20, pieces
    assert max(told) <= 4
    assert slots.places == 40


async def test_what_is_given_up_gives_its_places_back() -> None:
    slots, engine = SharedSlots(2, kept=0), Engine()
    tasks = [asyncio.create_task(collect(slots, engine, "a", 1.0, grants(f"a{k}.", 5))) for k in range(3)]
    await turns()
    for task in tasks[:2]:
        task.cancel()
    await turns()
    await until_done(engine, tasks[2])
    assert len(tasks[2].result()) == 5
    last = asyncio.create_task(collect(slots, engine, "c", 1.0, grants("c", 4)))
    await turns()
    assert sum(name.startswith("c") for name in engine.running) == 2
    await until_done(engine, last)


async def test_an_error_of_the_engine_is_the_callers() -> None:
    async def fail(some: Sequence[Grant], is_alone: bool) -> AsyncIterator[list[Generation]]:
        await asyncio.sleep(0)
        raise ValueError("it broke")
        yield []

    slots = SharedSlots(2, kept=0)
    with pytest.raises(ValueError, match="it broke"):
        async for _ in slots.run("a", 1.0, grants("a", 5), fail, is_alone=False):
            pass
    engine = Engine()
    task = asyncio.create_task(collect(slots, engine, "b", 1.0, grants("b", 3)))
    await turns()
    assert len(engine.running) == 2
    await until_done(engine, task)
