"""An error in a pass is one query's doing, which fails alone, or the engine's with all of them, which ends the run."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from clear_ray.engine import Generation, Grant
from clear_ray.errors import EngineError, EngineFailedError, told
from clear_ray.stages.failures import LoneFailures, engine_failure
from clear_ray.stages.generate import Dispatch, Generate
from clear_ray.stages.roster import Workers
from tests.unit.local_actors import LocalWorker


def failure_of(query_id: str) -> EngineFailedError:
    """Return what a worker raises when a pass does; the words are never the same twice."""
    try:
        raise IndexError(f"of {query_id}")
    except IndexError as error:
        return EngineFailedError("the engine failed", value=told(error))


class Engine:
    """A worker that fails of some queries, if they are among what it is given, and answers the others."""

    def __init__(self, is_poison: Callable[[str], bool]) -> None:
        self._is_poison = is_poison
        self.starts = 1
        self.given: list[tuple[list[str], bool]] = []

    async def cards(self) -> None:
        """Up again at once."""

    async def pulse(self) -> int | None:
        return None

    async def generate(self, grants: Sequence[Grant], is_alone: bool) -> AsyncIterator[list[Generation]]:
        self.given.append(([grant.query_id for grant in grants], is_alone))
        for grant in grants:
            if self._is_poison(grant.query_id):
                self.starts += 1
                raise failure_of(grant.query_id)
        yield [Generation(grant.query_id, (5, 2), "yes", "stop") for grant in grants]


class Market:
    """Grants whatever is asked for, and counts what died."""

    def __init__(self) -> None:
        self.attempts = 0
        self.forfeited = 0

    async def reserve(self, round_number: int, requests: list[tuple[int, int]], call: Any) -> list[int]:
        self.attempts += len(requests)
        return list(range(self.attempts - len(requests) + 1, self.attempts + 1))

    async def forfeit(self, lost: list[tuple[int, int]]) -> None:
        self.forfeited += len(lost)

    async def settle(self, settlements: list[Any]) -> None:
        """Nothing is kept."""


async def run(engine: Engine, query_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    market = Market()
    workers = Workers(
        [LocalWorker(engine)],
        is_death=lambda error: engine_failure(error) is not None,
        restart=lambda handle: None,
        stall_seconds=60,
    )
    stage = Generate(Dispatch(workers, market, None, seed=0))
    rows = [
        {
            "index": index,
            "query_id": query_id,
            "prompt": "?",
            "is_conversation": False,
            "round": 1,
            "granted_tokens": 5,
            "token_ids": [],
            "gold": None,
            "metadata": None,
        }
        for index, query_id in enumerate(query_ids)
    ]
    return {row["query_id"]: row async for some in stage(pa.Table.from_pylist(rows)) for row in some}


def test_a_query_that_the_engine_fails_of_fails_alone_and_says_why() -> None:
    engine = Engine(lambda query_id: query_id == "b")
    rows = asyncio.run(run(engine, ["a", "b", "c", "d"]))
    assert {query_id: bool(row["error"]) for query_id, row in rows.items()} == {
        "a": False,
        "b": True,
        "c": False,
        "d": False,
    }
    assert "IndexError: of b (at test_failures.py:" in rows["b"]["error"]
    # Once with the others and once by itself, not three times.
    assert engine.starts == 3


def test_an_engine_that_fails_of_everything_ends_the_run_at_the_second_query_by_itself() -> None:
    engine = Engine(lambda query_id: True)
    with pytest.raises(
        EngineError, match=r"fails of whatever it is given: IndexError: of b \(at test_failures.py:\d+\)"
    ):
        asyncio.run(run(engine, [*"abcdefgh"]))
    assert engine.given == [([*"abcdefgh"], False), (["a"], True), (["b"], True)]


def test_failures_with_answers_between_them_are_the_queries_own() -> None:
    failures = LoneFailures()
    for query_id in "abcdef":
        failures.note(failure_of(query_id), query_id)
        failures.forget()
    failures.note(failure_of("a"), "a")
    failures.note(failure_of("a"), "a")
    failures.note(EngineFailedError("another", value="ValueError: else (at there.py:3)"), "b")
    with pytest.raises(EngineError, match="queries b and c"):
        failures.note(EngineFailedError("another", value="ValueError: other words (at there.py:3)"), "c")


def test_the_kind_of_a_failure_is_its_type_and_place_and_survives_pickling() -> None:
    one, other = failure_of("a"), failure_of("bb")
    assert one.kind == other.kind
    assert one.value != other.value
    assert pickle.loads(pickle.dumps(one)).kind == one.kind  # noqa: S301 - our own
    assert EngineFailedError("gone", value="no place").kind == "no place"
