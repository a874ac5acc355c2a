"""Answers are scored beside the generation of others; one that kills or hangs the scorer costs what it spent, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.entries import Balance
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.market import MarketActor
from clear_ray.stages.generate import Dispatch, Generate
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import open_folder
from clear_ray.tasks import load_scorer
from tests.unit.local_actors import LocalActor, LocalWorker
from tests.unit.simulation import GRANTED_SCHEMA, query_row
from tests.unit.stages.test_probe import known_ids

MODULE = """
import os, time

def scorer(text, gold, metadata):
    if metadata == "dies":
        os._exit(1)
    if metadata == "hangs":
        time.sleep(1000)
    if metadata == "raises":
        raise KeyError("missing")
    return 1.0
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "scorer_of_a_stage.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "scorer_of_a_stage:scorer"


@pytest.fixture
def recorded(replay_settings: dict[str, Any]) -> ReplayConfig:
    return ReplayConfig.model_validate(replay_settings["engine"])


async def attempts_of(
    recorded: ReplayConfig, run_dir: Path, name: str, fates: Sequence[str]
) -> tuple[list[dict[str, Any]], Balance, int]:
    """Generate for a query of each fate, two in a call; return the rows, the account, and how often the loop went round."""
    rows = [
        query_row(index) | {"query_id": query_id, "metadata": fate, "token_ids": [], "round": 1, "granted_tokens": 40}
        for index, (query_id, fate) in enumerate(zip(known_ids(recorded, len(fates)), fates, strict=True))
    ]
    batch = pa.Table.from_pylist(rows, schema=GRANTED_SCHEMA)
    market = MarketActor(str(run_dir), 10_000, len(batch))
    worker = LocalWorker(EngineWorker(recorded, PriorHead(cap_tokens=320)))
    workers = Workers([worker], lambda _: False, lambda _: None, 900.0)
    make = partial(load_scorer, name, timeout_seconds=2.0)
    generate = Generate(Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=make, seed=0))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async def call(part: pa.Table) -> list[dict[str, Any]]:
        return [row async for rows in generate(part) for row in rows]

    counting = asyncio.ensure_future(count())
    try:
        calls = await asyncio.gather(*(call(batch.slice(first, 2)) for first in range(0, len(batch), 2)))
        return sorted(chain(*calls), key=lambda row: row["index"]), await market.balance(), turns
    finally:
        counting.cancel()
        market._journal.close()


@pytest.mark.parametrize(
    ("fate", "said"),
    [("dies", "the scorer's process died"), ("hangs", "the scorer took too long"), ("raises", "raised KeyError")],
)
async def test_one_poisonous_answer_is_one_failed_row_and_is_charged_once(
    recorded: ReplayConfig, tmp_path: Path, name: str, fate: str, said: str
) -> None:
    fates = ["fine", "fine", fate, "fine", "fine", "fine"]
    rows, balance, _ = await attempts_of(recorded, tmp_path / "run", name, fates)
    assert [row["index"] for row in rows] == list(range(6))
    for row, met in zip(rows, fates, strict=True):
        assert (row["error"] == "") == (met == "fine")
        assert row["correct"] == (None if met == fate else float(row["finish_reason"] == "stop"))
    assert rows[2]["error"].startswith(f"scorer: ClearRayError: {name}: ")
    assert said in rows[2]["error"]
    assert rows[2]["attempt_tokens"] > 0
    assert rows[2]["text"]
    spent = sum(row["attempt_tokens"] for row in rows)
    assert (balance.spent_tokens, balance.reserved_tokens, balance.wasted_tokens) == (spent, 0, 0)
    records = [record for record in read_journal(open_folder(str(tmp_path / "run"))) if "op" in record]
    settled = sorted((record["i"], record["t"]) for record in records if record["op"] == "settle")
    assert settled == [(row["index"], row["attempt_tokens"]) for row in rows]


async def test_the_callers_loop_goes_round_while_an_answer_hangs(
    recorded: ReplayConfig, tmp_path: Path, name: str
) -> None:
    *_, turns = await attempts_of(recorded, tmp_path / "run", name, ["hangs"])
    assert turns > 10  # of some 200 in the two seconds


async def test_every_answer_may_be_poisonous(recorded: ReplayConfig, tmp_path: Path, name: str) -> None:
    rows, balance, _ = await attempts_of(recorded, tmp_path / "run", name, ["dies"] * 4)
    assert all("process died" in row["error"] for row in rows)
    assert balance.spent_tokens == sum(row["attempt_tokens"] for row in rows)
    assert balance.reserved_tokens == balance.wasted_tokens == 0
