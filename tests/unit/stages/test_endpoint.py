"""The stage with an endpoint that fails: the ledger is exact, no row ends the run, and what is lost is charged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import EngineError
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.entries import Balance
from clear_ray.ledger.market import MarketActor
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import QUERY_SCHEMA
from clear_ray.run_folder.attempts import read_attempts, round_folder
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.granted import GrantedCall, RunRows
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import Folder, open_folder
from tests.endpoint_server import Endpoint, endpoint
from tests.unit.engine.endpoint_engines import config_of
from tests.unit.local_actors import LocalActor, LocalWorker
from tests.unit.simulation import GRANTED_SCHEMA, query_row

BUDGET, QUERIES = 2_000, 40


def granted(words: Sequence[int], tokens: int = 10) -> pa.Table:
    rows = [
        query_row(index)
        | {"query_id": f"q{index}", "prompt": f"write {many}", "token_ids": [], "round": 1, "granted_tokens": tokens}
        for index, many in enumerate(words)
    ]
    return pa.Table.from_pylist(rows, schema=GRANTED_SCHEMA)


def run(served: Endpoint, folder: Path, batch: pa.Table, **settings: Any) -> tuple[list[dict[str, Any]], Balance]:
    """Have a caller generate a batch, four queries a call; return the attempts, and the account."""
    run_folder, number = open_folder(str(folder)), int(batch["round"][0].as_py())
    target = round_folder(run_folder, number)
    target.make()

    async def call() -> tuple[list[dict[str, Any]], Balance]:
        market = MarketActor(str(folder), BUDGET, QUERIES)
        config = config_of(served, **{"timeout_seconds": 2.0, "continuation": "none"} | settings)
        worker = LocalWorker(EngineWorker(config, PriorHead(cap_tokens=320)))
        workers = Workers([worker], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
        caller = GenerateToFiles(dispatch, run_folder, rows_per_file=64)
        try:
            await asyncio.gather(*(caller.attempts(batch.slice(first, 4)) for first in range(0, len(batch), 4)))
            return attempts_in(run_folder, target), await market.balance()
        finally:
            market._journal.close()

    return asyncio.run(call())


def attempts_in(run_folder: Folder, folder: Folder) -> list[dict[str, Any]]:
    parts = AnswerParts(run_folder)
    return [row for path in folder.files(".parquet") for row in parts.whole(pq.read_table(path)).to_pylist()]


def test_the_account_agrees_with_the_endpoint_to_the_token(tmp_path: Path) -> None:
    with endpoint(faults=deque(["429", None, "503", None, None, "400", "429"])) as served:
        attempts, balance = run(served, tmp_path, granted(list(range(1, 31))))
    assert balance.spent_tokens == served.generated_tokens == sum(row["usage_output_tokens"] or 0 for row in attempts)
    assert (balance.reserved_tokens, balance.wasted_tokens) == (0, 0)
    assert len(attempts) == 30
    assert sum(bool(row["error"]) for row in attempts) == 1
    for row in attempts:
        if not row["error"]:
            assert row["attempt_tokens"] == row["usage_output_tokens"] == len(row["token_ids"])
            assert (row["usage_prompt_tokens"], row["usage_cached_tokens"], row["usage_reasoning_tokens"]) == (8, 1, 0)
            assert row["is_at_end"] == (row["finish_reason"] == "length")


def test_what_is_lost_is_charged_in_full_and_asked_again(tmp_path: Path) -> None:
    faults = ["reset", None, "500", "html 502", None, "truncated"]
    with endpoint(faults=deque(faults)) as served:
        attempts, balance = run(served, tmp_path, granted([5] * 12))
    assert [row["error"] for row in attempts] == [""] * 12
    assert {row["text"] for row in attempts} == {"w1 w2 w3 w4 w5"}
    assert balance.spent_tokens == 12 * 6 + 4 * 10
    assert balance.wasted_tokens == 4 * 10
    assert balance.reserved_tokens == 0
    assert served.generated_tokens == (12 + 4) * 6 <= balance.spent_tokens


def test_a_query_that_is_lost_each_time_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.engine.endpoint.engine._LONGEST_LOST_WAIT_SECONDS", 0.01)
    with endpoint(faults=deque(["500"] * 5)) as served:
        attempts, balance = run(served, tmp_path, granted([5]), max_batch=1)
        assert len(served.bodies) == 5
    (row,) = attempts
    assert row["error"] == "the endpoint lost it: 500: The server had an error."
    assert (row["attempt"], row["attempt_tokens"]) == (0, 0)
    assert balance.spent_tokens == balance.wasted_tokens == 5 * 10


def test_more_than_was_granted_ends_the_run(tmp_path: Path) -> None:
    with endpoint(usage={"completion_tokens": 11}) as served, pytest.raises(EngineError, match="11 tokens on a grant"):
        run(served, tmp_path, granted([5]))


@pytest.mark.parametrize("continuation", ["auto", "none"])
def test_the_price_knows_whether_a_cut_answer_goes_on(tmp_path: Path, continuation: str) -> None:
    folder = open_folder(str(tmp_path))
    with endpoint() as served:
        run(served, tmp_path, granted([4, 25]), continuation=continuation)
        (found,) = read_attempts(folder, 1, 2, VoidAttempts({}))
        is_over = dict(zip(found.index_M.tolist(), found.is_over_M.tolist(), strict=True))
        assert is_over == {0: True, 1: continuation == "none"}
        if continuation == "auto":
            queries = granted([4, 25]).select(QUERY_SCHEMA.names).cast(QUERY_SCHEMA)
            folder.child("queries").make()
            pq.write_table(queries, f"{folder.child('queries').path}/part-000000.parquet")
            (file,) = round_folder(folder, 1).files(".parquet")
            name = "/".join(file.split("/")[-2:])
            call = GrantedCall(2, np.array([1]), np.array([30]), (name,), np.array([1], np.int32))
            rows = RunRows(folder).granted(call)
            assert rows["text"].to_pylist() == [" ".join(f"w{word + 1}" for word in range(10))]
            attempts, _ = run(served, tmp_path, rows, continuation=continuation)
            assert attempts[0]["text"] == " ".join(f"w{word + 1}" for word in range(25))
            assert attempts[0]["answer_tokens"] == 26
