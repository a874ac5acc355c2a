"""A block of queries is probed whole, in parts of a size, and written once, however often its call is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.errors import EngineError
from clear_ray.estimation.prior import PriorHead
from clear_ray.records import QUERY_SCHEMA
from clear_ray.stages.granted import RunRows
from clear_ray.stages.probe_files import ProbeCall, ProbeToFiles
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import open_folder
from tests.unit.local_actors import LocalActor
from tests.unit.simulation import query_row
from tests.unit.stages.test_probe import known_ids

HEAD = PriorHead(cap_tokens=320)


class Counting(EngineWorker):
    """A worker that notes how many prompts came together, and how many of those calls were open at once."""

    calls: list[int]
    open = most_open = 0

    async def probe(self, query_ids: Any, *arguments: Any) -> dict[str, Any]:  # type: ignore[override]
        self.calls.append(len(query_ids))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.01)
        self.open -= 1
        return await super().probe(query_ids, *arguments)


@pytest.fixture
def worker(replay_settings: dict[str, Any]) -> Counting:
    made = Counting(ReplayConfig.model_validate(replay_settings["engine"]), HEAD)
    made.calls = []
    return made


def prober_of(worker: Counting, run_dir: Path, replay_settings: dict[str, Any]) -> ProbeToFiles:
    ids = known_ids(ReplayConfig.model_validate(replay_settings["engine"]), 9)
    (run_dir / "queries").mkdir(parents=True)
    rows = [query_row(index) | {"query_id": query_id} for index, query_id in enumerate(ids)]
    pq.write_table(pa.Table.from_pylist(rows, schema=QUERY_SCHEMA), run_dir / "queries/part-000000.parquet")
    workers = Workers([LocalActor(worker)], lambda _: False, lambda _: None, 900.0)
    return ProbeToFiles(workers, RunRows(open_folder(str(run_dir))), asyncio.Lock())


def call_of(run_dir: Path, *indices: int) -> ProbeCall:
    tokens_K = tuple(int(tokens) for tokens in HEAD.card.tokens_K)
    into = open_folder(str(run_dir)).child("estimates").child("s")
    return ProbeCall(np.array(indices), into, "block-0", tokens_K, rows_a_call=3, calls_at_once=2)


def test_a_block_is_read_in_parts_and_written_once(
    worker: Counting, replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    prober = prober_of(worker, tmp_path, replay_settings)
    call = call_of(tmp_path, 8, 0, 1, 2, 3, 4, 5, 6)
    assert asyncio.run(prober.probe(call)) == 8
    assert (worker.calls, worker.most_open) == ([3, 3, 2], 2)
    (file,) = (tmp_path / "estimates").rglob("*.parquet")
    found = pq.read_table(file)
    assert found["index"].to_pylist() == [8, 0, 1, 2, 3, 4, 5, 6]
    before = file.read_bytes()
    assert asyncio.run(prober_again(worker, tmp_path).probe(call)) == 8
    assert [path.read_bytes() for path in (tmp_path / "estimates").rglob("*.parquet")] == [before]


def prober_again(worker: Counting, run_dir: Path) -> ProbeToFiles:
    workers = Workers([LocalActor(worker)], lambda _: False, lambda _: None, 900.0)
    return ProbeToFiles(workers, RunRows(open_folder(str(run_dir))), asyncio.Lock())


def test_an_engine_that_fails_leaves_no_file(
    worker: Counting, replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: Any) -> None:
        raise EngineError("the engine failed")

    monkeypatch.setattr(worker, "probe", failing)
    prober = prober_of(worker, tmp_path, replay_settings)
    with pytest.raises(EngineError, match="the engine failed"):
        asyncio.run(prober.probe(call_of(tmp_path, 0, 1, 2, 3)))
    assert not list((tmp_path / "estimates").rglob("*.parquet"))
