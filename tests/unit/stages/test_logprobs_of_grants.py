"""Log-probabilities of an answer that several grants have made, in lives of the caller that know nothing of each other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import TransformersConfig
from clear_ray.estimation.prior import PriorHead
from clear_ray.ingest.logprobs import NOT_GIVEN
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.market import MarketActor
from clear_ray.records import QUERY_SCHEMA
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.granted import GrantedCall
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import Folder, open_folder
from tests.unit.engine.model_folders import ALTERNATING, save_model
from tests.unit.local_actors import LocalActor, LocalWorker
from tests.unit.simulation import query_row

ASKED = ({"logprobs": 2, "temperature": 1.0}, {"temperature": 1.0}, None)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> EngineWorker:
    model = save_model(tmp_path_factory.mktemp("model"), template=ALTERNATING)
    return EngineWorker(TransformersConfig(model=str(model), threads=1, max_batch=4), PriorHead(cap_tokens=320))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "queries").mkdir()
    rows = [
        query_row(index) | {"prompt": "Say it", "sampling": asked and json.dumps(asked)}
        for index, asked in enumerate(ASKED)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=QUERY_SCHEMA), tmp_path / "queries/part-000000.parquet")
    return open_folder(str(tmp_path))


def grant(worker: EngineWorker, folder: Folder, answers: AnswerFiles, number: int) -> list[dict[str, Any]]:
    """Have a caller that has just begun generate six further tokens for each query; return its attempts."""
    index = np.arange(len(ASKED))

    async def call() -> None:
        market = MarketActor(folder.path, 10_000, len(ASKED))
        workers = Workers([LocalWorker(worker)], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
        caller = GenerateToFiles(dispatch, folder, rows_per_file=64)
        try:
            written = await caller.generate(GrantedCall(number, index, np.full(len(ASKED), 6), *answers.of(index)))
            answers.note(written)
        finally:
            market._journal.close()

    asyncio.run(call())
    paths = folder.child("rounds").child(f"r{number:02d}").files(".parquet")
    parts = AnswerParts(folder)
    rows = [row for path in paths for row in parts.whole(pq.read_table(path)).to_pylist()]
    return sorted(rows, key=lambda row: int(row["index"]))


def test_all_grants_have_their_part(worker: EngineWorker, folder: Folder) -> None:
    answers = AnswerFiles(np.zeros(len(ASKED), np.int64))
    for number in (1, 2, 3):
        asked, *others = grant(worker, folder, answers, number)
        assert (len(asked["token_ids"]), asked["answer_tokens"]) == (6, 6 * number)
        entries = json.loads(asked["logprobs"])
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == asked["text"]
        assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
        assert [row["logprobs"] for row in others] == [None, None]


def test_an_answer_whose_first_part_has_none_is_said_to_have_none(worker: EngineWorker, folder: Folder) -> None:
    answers = AnswerFiles(np.zeros(len(ASKED), np.int64))
    grant(worker, folder, answers, 1)
    for path in folder.child("rounds").child("r01").files(".parquet"):  # as where an endpoint gave none
        table = pq.read_table(path).drop_columns(["logprobs"])
        pq.write_table(table.append_column("logprobs", pa.array([NOT_GIVEN, None, None])), path)
    asked, *_ = grant(worker, folder, answers, 2)
    assert asked["logprobs"] == NOT_GIVEN
