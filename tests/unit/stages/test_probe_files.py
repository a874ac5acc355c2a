"""The queries of some calls are one file of estimates, however often they are read, and the driver hears a number."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.engine.base import Prompt
from clear_ray.errors import EngineError
from clear_ray.estimation.prior import PriorHead
from clear_ray.stages.gate import Gate
from clear_ray.stages.homes import Homes
from clear_ray.stages.probe import Probe
from clear_ray.stages.probe_files import ProbeToFiles
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import open_folder
from tests.unit.local_actors import LocalActor
from tests.unit.stages.test_probe import batch_of, known_ids


class Watched(EngineWorker):
    """A worker that knows how many calls it had at once, and of how many queries each was."""

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config, PriorHead(cap_tokens=320))
        self.open = self.most = 0
        self.calls: list[int] = []

    async def probe(self, query_ids: Sequence[str], prompts: Sequence[Prompt], *others: Any) -> dict[str, Any]:
        self.calls.append(len(query_ids))
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.01)
        try:
            return await super().probe(query_ids, prompts, *others)
        finally:
            self.open -= 1


@pytest.fixture
def worker(replay_settings: dict[str, Any]) -> Watched:
    return Watched(ReplayConfig.model_validate(replay_settings["engine"]))


@pytest.fixture
def queries(replay_settings: dict[str, Any]) -> pa.Table:
    return batch_of(known_ids(ReplayConfig.model_validate(replay_settings["engine"]), 9))


def counts_of(
    worker: Watched, folder: Path, queries: pa.Table, *batches: Sequence[int], is_open: bool = True
) -> list[int]:
    """Have batches of a run's queries read in calls of two, two at a time; return what the driver hears."""
    run = open_folder(str(folder))
    gate, tokens_K = Gate(run), PriorHead(cap_tokens=320).card.tokens_K
    run.child("queries").make()
    for number, first in enumerate(range(0, len(queries), 4)):
        pq.write_table(queries.slice(first, 4), folder / "queries" / f"part-{number}.parquet")
    if is_open:
        gate.open()

    async def read() -> list[int]:
        workers = Workers([LocalActor(worker)], lambda _: False, lambda _: None, 900.0)
        probe = partial(Probe, workers, tokens_K, "", gate)
        caller = ProbeToFiles(probe, run, run.child("estimates"), homes=Homes(2, 1), calls=2)
        numbers = [pa.table({"index": pa.array(batch, pa.int64())}) for batch in batches]
        return [count for batch in numbers async for table in caller(batch) for count in table["rows"].to_pylist()]

    return asyncio.run(read())


def test_a_batch_is_read_in_calls_and_written_as_one_file(worker: Watched, queries: pa.Table, tmp_path: Path) -> None:
    first, second = range(5), range(5, 9)
    assert counts_of(worker, tmp_path, queries, first, second, first, ()) == [5, 4, 5, 0]
    assert (sorted(worker.calls), worker.most) == ([1, 1, 1, 1, 2, 2, 2, 2, 2], 2), "calls are stretches"
    files = sorted((tmp_path / "estimates").iterdir())
    read = [pq.read_table(path)["index"].to_pylist() for path in files]
    assert read == [[0, 1, 2, 3, 4], [5, 6, 7, 8]], "what is read again takes the place of the first"


def test_nothing_is_read_or_written_of_a_run_that_is_not_open(
    worker: Watched, queries: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="not to be asked"):
        counts_of(worker, tmp_path, queries, range(9), is_open=False)
    assert (worker.calls, [path.name for path in tmp_path.iterdir()]) == ([], ["queries"])
