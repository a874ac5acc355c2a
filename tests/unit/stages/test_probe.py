"""Every query comes out of the probe once, whatever its prompt does to the engine that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import Prompt
from clear_ray.errors import EngineError
from clear_ray.estimation.prior import PriorHead
from clear_ray.estimation.states import SUMS
from clear_ray.records import QUERY_SCHEMA
from clear_ray.stages.probe import Probe, call_rows
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from tests.unit.local_actors import LocalActor


class DiedError(Exception):
    """What Ray would raise to the caller of an engine that died."""


class Mortal(EngineWorker):
    """A worker whose process dies of some prompts."""

    def __init__(self, config: ReplayConfig, deadly: frozenset[str]) -> None:
        super().__init__(config, PriorHead(cap_tokens=320))
        self._deadly = deadly
        self.read_alone: list[str] = []

    async def probe(
        self, query_ids: Sequence[str], prompts: Sequence[Prompt], is_alone: bool = False, *others: Any
    ) -> dict[str, Any]:
        if is_alone:
            self.read_alone.extend(query_ids)
        if self._deadly & set(query_ids):
            raise DiedError
        return await super().probe(query_ids, prompts, is_alone, *others)


@pytest.fixture
def recorded(replay_settings: dict[str, Any]) -> ReplayConfig:
    return ReplayConfig.model_validate(replay_settings["engine"])


def batch_of(query_ids: Sequence[str]) -> pa.Table:
    rows = [
        {
            "index": index,
            "query_id": query_id,
            "prompt": "What is 1 + 1?",
            "is_conversation": False,
            "weight": 1.0,
            "cost": 1.0,
            "max_tokens": 320,
        }
        for index, query_id in enumerate(query_ids)
    ]
    return pa.Table.from_pylist(rows, schema=QUERY_SCHEMA)


def probed(worker: Mortal, *calls: Sequence[str], has_states: bool = False) -> pa.Table:
    tokens_K = tuple(int(tokens) for tokens in PriorHead(cap_tokens=320).card.tokens_K)

    async def read() -> pa.Table:
        workers = Workers([LocalActor(worker)], lambda error: isinstance(error, DiedError), lambda _: None, 900.0)
        probe = Probe(workers, tokens_K, has_states=has_states)
        return pa.concat_tables([table for query_ids in calls async for table in probe(batch_of(query_ids))])

    return asyncio.run(read())


def test_states_are_kept_where_a_run_learns_on_them(recorded: ReplayConfig) -> None:
    ids = known_ids(recorded, 3)
    found = probed(Mortal(recorded, frozenset(ids[1:2])), ids, has_states=True)
    states = dict(zip(found["query_id"].to_pylist(), found["states"].to_pylist(), strict=True))
    assert [states[name] is None for name in ids] == [False, True, False]
    assert {len(states[name]) for name in (ids[0], ids[2])} == {2 * SUMS}
    assert states[ids[0]] != states[ids[2]]
    assert "states" not in probed(Mortal(recorded, frozenset()), ids).column_names


def known_ids(recorded: ReplayConfig, count: int) -> list[str]:
    ids = pq.read_table(recorded.rollouts, columns=["query_id"])["query_id"].to_pylist()
    return sorted(set(ids))[:count]


def test_a_prompt_that_kills_engines_fails_alone(recorded: ReplayConfig) -> None:
    ids = known_ids(recorded, 5)
    worker = Mortal(recorded, frozenset({ids[2]}))
    table = probed(worker, ids)
    assert table["query_id"].to_pylist() == ids
    errors = table["error"].to_pylist()
    assert [bool(error) for error in errors] == [False, False, True, False, False]
    assert "no other query on it" in errors[2]
    assert worker.read_alone == [ids[2]]
    assert not np.any(table["success_K"].to_pylist()[2]), "what cannot be read is worth nothing"
    assert np.any(table["success_K"].to_pylist()[3])


def test_a_prompt_that_the_engine_refuses_fails_alone(recorded: ReplayConfig) -> None:
    ids = [*known_ids(recorded, 2), "never recorded"]
    table = probed(Mortal(recorded, frozenset()), ids)
    assert [bool(error) for error in table["error"].to_pylist()] == [False, False, True]


def test_engines_that_die_of_everything_end_the_run(recorded: ReplayConfig) -> None:
    ids = known_ids(recorded, 12)
    with pytest.raises(EngineError, match="9 prompts in a row"):
        probed(Mortal(recorded, frozenset(ids)), ids)


def test_only_deaths_count_towards_the_end_of_the_run(recorded: ReplayConfig) -> None:
    """One prompt kills its engine after eight that were refused, and nine do so with answers between them."""
    ids = known_ids(recorded, 12)
    refused = [f"never recorded {number}" for number in range(8)]
    table = probed(Mortal(recorded, frozenset(ids[:1])), [*refused, *ids[:2]])
    assert [bool(error) for error in table["error"].to_pylist()] == [True] * 9 + [False]
    calls = [[name] for deadly in ids[:9] for name in (deadly, ids[9])]
    table = probed(Mortal(recorded, frozenset(ids[:9])), *calls)
    assert [bool(error) for error in table["error"].to_pylist()] == [True, False] * 9
    mixed = [name for both in zip(ids[:9], [*refused, "never recorded"], strict=True) for name in both]
    with pytest.raises(EngineError, match="9 prompts in a row"):
        probed(Mortal(recorded, frozenset(ids[:9])), mixed)


@pytest.mark.parametrize(
    ("queries", "settings", "rows"),
    [
        (1, {}, 1),
        (104, {}, 26),
        (1_000_000, {}, 128),
        (104, {"engine": {"workers": 8}}, 4),
        (104, {"estimate": {"batch_rows": 9}}, 9),
    ],
)
def test_a_call_reads_many_prompts_but_leaves_no_engine_without(
    queries: int, settings: dict[str, Any], rows: int
) -> None:
    config = RunConfig.parse({"run_dir": "run", "input": {"path": "x.jsonl"}, "budget": 1000, **settings})
    assert call_rows(config, queries, workers=config.engine.workers) == rows
