"""Does what clear_ray itself holds, or does for a query, grow with the number of queries?

Stage 2 without Ray in one process: a caller (`GenerateToFiles`) reserves, a replayed engine generates, the market's journal
and the files of attempts are written; then a market is started again from that journal, and a driver reads the attempts back.
`orchestration.py` has the same with Ray, whose processes cost more than everything here.

    python benchmarks/memory.py                            1e4 and 1e5 queries: a minute of one core
    python benchmarks/memory.py --queries 10000 100000 1000000

Prints one JSON line. For each number of queries, in a process of its own each:
    cpu_us_per_query        of caller, market and engine together, after the first 4,000 queries
    grown_mb                what the process holds more at the end than after the first 4,000 queries
    market_us_per_record    CPU of a market that starts again, for each record of the journal (two a query)
    market_bytes_per_query  the most memory that it takes meanwhile, beyond what was held before
    driver_us_per_query     CPU of reading all attempts back and taking them into `Rounds`
    driver_bytes_per_query  likewise
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.engine import ReplayConfig
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.market import MarketActor
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import QUERY_SCHEMA
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder.attempts import read_attempts
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import Folder, open_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.unit.local_actors import LocalActor, LocalWorker

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests" / "data" / "rollouts"
GRANT_TOKENS, BLOCK_ROWS = 32, 2_000


def recorded() -> ReplayConfig:
    files = {name: str(ROLLOUTS / f"{name}.parquet") for name in ("rollouts", "features")}
    return ReplayConfig.model_validate({"kind": "replay", "max_batch": 256} | files)


def block(queries: pa.Table, first: int, last: int) -> pa.Table:
    """Return granted rows from `first` up to `last`: copies of the recorded queries."""
    index = np.arange(first, last)
    rows = queries.take(pa.array(index % len(queries)))
    ids = [f"{name}#{number}" for name, number in zip(rows["query_id"].to_pylist(), index, strict=True)]
    columns = {field.name: pa.nulls(len(rows), field.type) for field in QUERY_SCHEMA}
    columns |= {"index": pa.array(index), "query_id": pa.array(ids), "prompt": rows["prompt"].combine_chunks()}
    columns |= {name: pa.array(np.ones(len(rows))) for name in ("weight", "cost")}
    columns |= {"is_conversation": pa.array(np.zeros(len(rows), bool))}
    columns |= {"max_tokens": pa.array(np.full(len(rows), GRANT_TOKENS))}
    columns |= {"token_ids": pa.array([[]] * len(rows), pa.list_(pa.int32()))}
    columns |= {"round": pa.array(np.ones(len(rows), np.int32))}
    return pa.table(columns | {"granted_tokens": pa.array(np.full(len(rows), GRANT_TOKENS))})


def held_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def most_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def costs(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result of an action, its CPU seconds, and the most bytes that it held meanwhile beyond those before."""
    begun = held_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the most memory held is counted from here
    cpu = time.process_time()
    result = action()
    return result, time.process_time() - cpu, 1e6 * max(most_mb() - begun, 0.0)


async def generate(folder: Folder, queries: int) -> dict[str, float]:
    """Run stage 2 over so many queries, two blocks open at a time."""
    market = MarketActor(folder.path, GRANT_TOKENS * queries, queries)
    worker = LocalWorker(EngineWorker(recorded(), PriorHead(cap_tokens=400)))
    workers = Workers([worker], lambda _: False, lambda _: None, 900.0)
    dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
    caller, slots = GenerateToFiles(dispatch, folder, rows_per_file=64), asyncio.Semaphore(32)
    recording = pq.read_table(ROLLOUTS / "queries.parquet")

    async def call(rows: pa.Table) -> None:
        async with slots:
            await caller.attempts(rows)

    async def run(first: int) -> None:
        rows = block(recording, first, min(first + BLOCK_ROWS, queries))
        await asyncio.gather(*(call(rows.slice(at, 16)) for at in range(0, len(rows), 16)))

    begun, cpu, firsts = held_mb(), time.process_time(), range(0, queries, 2 * BLOCK_ROWS)
    for first in firsts:
        if first == firsts[1]:
            begun, cpu = held_mb(), time.process_time()
        await asyncio.gather(*(run(at) for at in range(first, min(first + 2 * BLOCK_ROWS, queries), BLOCK_ROWS)))
    spent = time.process_time() - cpu
    market._journal.close()
    rest = queries - 2 * BLOCK_ROWS
    return {"cpu_us_per_query": round(1e6 * spent / rest, 1), "grown_mb": round(held_mb() - begun, 1)}


class Equal:
    """Offers that grant every query the same, without a thought."""

    def __init__(self, queries: int) -> None:
        self.cost_N, self.max_tokens_N = np.ones(queries), np.full(queries, GRANT_TOKENS)

    def clear(self, states: QueryStates, **_: Any) -> Clearing:
        """Grant every query its ceiling."""
        tokens, queries = self.max_tokens_N, len(self.max_tokens_N)
        return Clearing(np.arange(queries), tokens, tokens.astype(float), np.zeros(queries), np.zeros(0), 0.0, 0.0, 0.0)

    def serve(self, owed_tokens_N: np.ndarray, **_: Any) -> Clearing:
        """Grant nothing."""
        return nothing_to_grant(len(owed_tokens_N))


def take_back(folder: Folder, queries: int) -> None:
    """Read all attempts as a driver does after a round."""
    rounds = Rounds(Equal(queries), AllocationConfig())
    assert rounds.next(GRANT_TOKENS * queries) is not None
    report = rounds.take(1, read_attempts(folder, 1, queries, VoidAttempts()))
    assert report.fresh == queries


def at_size(queries: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="clear_ray_memory_") as made:
        folder = open_folder(made)
        found = asyncio.run(generate(folder, queries))
        _, market_cpu, market_bytes = costs(lambda: MarketActor(made, GRANT_TOKENS * queries, queries))
        _, driver_cpu, driver_bytes = costs(lambda: take_back(folder, queries))
    return found | {
        "market_us_per_record": round(1e6 * market_cpu / (2 * queries), 2),
        "market_bytes_per_query": round(market_bytes / queries, 1),
        "driver_us_per_query": round(1e6 * driver_cpu / queries, 1),
        "driver_bytes_per_query": round(driver_bytes / queries, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        print(json.dumps(at_size(chosen.queries[0])))
        return
    sizes = {}
    for queries in chosen.queries:
        command = [sys.executable, __file__, "--alone", "--queries", str(queries)]
        sizes[queries] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    said = {"benchmark": "memory", "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": " ".join(sys.argv)}
    print(json.dumps(said | {"sizes": sizes, "machine": machine}))


if __name__ == "__main__":
    main()
