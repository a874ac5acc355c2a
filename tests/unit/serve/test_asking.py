"""Calls that travel together, and streams that are put together and taken apart."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar

import pytest

from clear_ray.serve.asking import Weight, gathered, merged, scattered
from clear_ray.serve.tickets import Tickets
from clear_ray.serve.together import Together


class Slow:
    """Doubles numbers, a call at a time, once it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise RuntimeError("thirteen")
        return [2 * item for item in items]


async def test_what_comes_while_a_call_is_on_its_way_travels_in_the_next() -> None:
    slow = Slow()
    together: Together[int, int] = Together(slow)
    first = asyncio.create_task(together(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(together(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    slow.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert slow.calls == [[1], [2, 3, 4]]
    assert await together(5) == 10  # and again, when none is under way


async def test_what_fails_fails_for_those_that_were_in_it_alone() -> None:
    slow = Slow()
    together: Together[int, int] = Together(slow)
    bad = asyncio.create_task(together(13))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    good = asyncio.create_task(together(1))
    slow.gate.set()
    with pytest.raises(RuntimeError, match="thirteen"):
        await bad
    assert await good == 2


async def test_an_answer_that_nothing_waits_for_is_given_back() -> None:
    slow, back = Slow(), list[tuple[int, int]]()
    together: Together[int, int] = Together(slow, lambda item, answer: back.append((item, answer)))
    gone, stays = asyncio.create_task(together(1)), asyncio.create_task(together(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone.cancel()
    slow.gate.set()
    assert await stays == 4
    assert back == [(1, 2)]


async def numbers(*given: int, pause: bool = False) -> AsyncIterator[int]:
    for number in given:
        if pause:
            await asyncio.sleep(0.01)
        if number == 13:
            raise RuntimeError("thirteen")
        yield number


async def test_streams_come_apart_as_they_went_in() -> None:
    assert [some async for some in gathered(numbers(1, 2, 3))] == [[1, 2, 3]]
    assert [some async for some in gathered(numbers(1, 2, pause=True))] == [[1], [2]]
    assert [number async for number in scattered(gathered(numbers(1, 2, 3)))] == [1, 2, 3]
    assert [some async for some in gathered(numbers(1, 2, 3, pause=True), 60.0)] == [[1, 2], [3]]
    assert [some async for some in gathered(numbers(1, 2, pause=True), 0.001)] == [[1], [2]]
    assert [some async for some in gathered(numbers(1), 60.0)] == [[1]]  # nothing is waited for that will not come


async def test_what_came_before_an_error_comes_before_it() -> None:
    come = scattered(gathered(numbers(1, 2, 13, 4)))
    assert [await anext(come), await anext(come)] == [1, 2]
    with pytest.raises(RuntimeError, match="thirteen"):
        await anext(come)
    with pytest.raises(RuntimeError, match="thirteen"):
        _ = [item async for item in merged([numbers(1, 2, pause=True), numbers(13)])]


async def test_a_stream_that_is_left_ends_its_source() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    lists = gathered(endless())
    assert await anext(lists)
    await lists.aclose()
    assert ended.is_set()


def test_equal_queries_come_again_in_the_order_in_which_they_first_came() -> None:
    tickets = Tickets()
    tickets.keep("a", 1.0, 10.0)
    tickets.keep("a", 2.0, 11.0)
    tickets.keep("", 3.0, 11.0)
    assert [tickets.take("a", 20.0) for _ in range(3)] == [1.0, 2.0, 20.0]
    assert tickets.take("", 20.0) == 20.0
    tickets.keep("b", 1.0, 10.0)
    assert tickets.take("b", 1_000.0) == 1_000.0  # too long ago


def test_a_weight_is_followed_where_it_is_and_travels_as_a_number() -> None:
    weight, told = Weight(5), list[int]()
    weight.follow(told.append)
    assert pickle.loads(pickle.dumps(weight)).tokens == 5  # noqa: S301
    weight.change(3)
    assert told == [3]


async def test_what_travels_together_is_of_no_single_request() -> None:
    request = ContextVar("request", default="none")
    seen = list[str]()

    async def call(items: Sequence[int]) -> list[int]:
        seen.append(request.get())
        return list(items)

    request.set("one that may be cancelled")
    assert await Together(call)(1) == 1
    assert seen == ["none"]
