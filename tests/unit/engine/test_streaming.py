"""Answers while they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from clear_ray.engine import Generation, Grant, ReplayEngine
from clear_ray.engine.streaming import Partial, stream
from tests.conftest import ROLLOUTS
from tests.unit.engine.conftest import replay_engine, run_grants

EVERY = 8


@pytest.fixture(scope="module")
def replay() -> ReplayEngine:
    return replay_engine(ROLLOUTS / "rollouts.parquet")


@pytest.fixture(scope="module")
def long(replay: ReplayEngine) -> Grant:
    """A grant that cuts a recording of more than five pieces."""
    names = [
        name for name in replay._rollouts._rows_of if replay._rollouts.length(replay._rollouts.first_row(name)) > 44
    ]
    return Grant(names[0], "", 44)


def collect(
    engine: ReplayEngine, grant: Grant, is_over: Callable[[str], bool] = lambda text: False
) -> tuple[list[Partial], Generation]:
    async def run() -> list[Partial | Generation]:
        return [item async for item in stream(engine, grant, every_tokens=EVERY, is_over=is_over)]

    items = asyncio.run(run())
    assert [isinstance(item, Generation) for item in items] == [False] * (len(items) - 1) + [True]
    return items[:-1], items[-1]  # type: ignore[return-value]


def test_the_pieces_are_those_of_the_whole(replay: ReplayEngine, long: Grant) -> None:
    partials, last = collect(replay, long)
    whole = run_grants(replay, [long])[long.query_id, 0]
    assert last == whole
    assert [len(partial.token_ids) for partial in partials] == [8, 16, 24, 32, 40]
    for partial in partials:
        assert partial.token_ids == whole.token_ids[: len(partial.token_ids)]
        assert whole.text.startswith(partial.text)


def test_a_stream_goes_on_after_a_prefix(replay: ReplayEngine, long: Grant) -> None:
    whole = run_grants(replay, [long])[long.query_id, 0]
    rest = Grant(long.query_id, "", long.max_tokens - 20, prefix_token_ids=whole.token_ids[:20])
    partials, last = collect(replay, rest)
    assert last.token_ids == whole.token_ids[20:]
    assert [len(partial.token_ids) for partial in partials] == [8, 16]
    assert last.text == whole.text


def test_an_answer_that_is_over_ends_with_all_that_was_generated(replay: ReplayEngine, long: Grant) -> None:
    partials, last = collect(replay, long, lambda text: len(text) > 30)
    assert last.finish_reason == "cancelled"
    assert len(last.text) > 30
    assert all(len(partial.text) <= 30 for partial in partials)
    assert len(partials) * EVERY < len(last.token_ids) <= (len(partials) + 1) * EVERY


def test_a_query_that_fails_fails_alone(replay: ReplayEngine) -> None:
    partials, last = collect(replay, Grant("nobody recorded this", "", 20))
    assert (partials, last.token_ids, last.finish_reason) == ([], (), "cancelled")
    assert "no recording" in last.error


def test_a_stream_in_real_time_takes_a_slot_and_is_cancelled_there(long: Grant) -> None:
    engine = replay_engine(ROLLOUTS / "rollouts.parquet", tokens_per_second=2_000.0, max_batch=1)

    async def run() -> tuple[list[int], Generation]:
        first = asyncio.create_task(last_of(engine, long))
        await asyncio.sleep(0)
        second = asyncio.create_task(last_of(engine, Grant(f"{long.query_id}#2", "", 44)))
        done = []
        first.add_done_callback(lambda _: done.append(1))
        second.add_done_callback(lambda _: done.append(2))
        await asyncio.sleep(0)
        engine.cancel([f"{long.query_id}#2"])
        await first
        return done, await second

    done, cancelled = asyncio.run(run())
    assert done[:1] == [1]  # one slot: the second has to wait for it
    assert cancelled.finish_reason == "cancelled"
    assert len(cancelled.token_ids) < 44


async def last_of(engine: ReplayEngine, grant: Grant) -> Generation:
    last = [item async for item in engine.stream(grant, EVERY)][-1]
    assert isinstance(last, Generation)
    return last
