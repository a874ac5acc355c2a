"""No grant exceeds what the model's context leaves beside the prompt, over all rounds of a query."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.config.engine import ReplayConfig, TransformersConfig
from clear_ray.engine.base import Generation, Grant
from clear_ray.estimation.prior import PriorHead
from clear_ray.records import QUERY_SCHEMA
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing, clear
from clear_ray.rounds.minimum_service import minimum_service, owed_tokens
from clear_ray.run_folder.estimates import read_batch
from clear_ray.stages.generate import asked_directly
from clear_ray.stages.probe import Probe
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from tests.unit.local_actors import LocalActor
from tests.unit.simulation import query_row
from tests.unit.stages.test_probe import known_ids

CONTEXT = 64
MAX_TOKENS = 24
HEAD = PriorHead(cap_tokens=MAX_TOKENS)
TOKENS_K = tuple(int(tokens) for tokens in HEAD.card.tokens_K)
STORY = "Tell a long story of a ship. "
PROMPTS = [STORY, STORY * 2, STORY * 3, STORY * 4]
DIRECT_TEXT = "Answer at once."


@pytest.fixture(scope="module")
def worker() -> Iterator[EngineWorker]:
    made = EngineWorker(TransformersConfig(max_context_tokens=CONTEXT, device="cpu", threads=1, max_batch=4), HEAD)
    yield made
    made._engine.close()


def probed(worker: EngineWorker, rows: Sequence[dict[str, Any]], *, direct_text: str = "") -> pa.Table:
    """Return the estimates of queries."""
    queries = pa.Table.from_pylist([query_row(index) | row for index, row in enumerate(rows)], schema=QUERY_SCHEMA)

    async def read() -> pa.Table:
        workers = Workers([LocalActor(worker)], lambda _: False, lambda _: None, 900.0)
        probe = Probe(workers, TOKENS_K, direct_text)
        return pa.concat_tables([table async for table in probe(queries)])

    return asyncio.run(read())


def batch_of(estimates: pa.Table) -> Batch:
    return read_batch(estimates, np.asarray(TOKENS_K, np.int64), np.arange(len(estimates), dtype=np.uint64))


def generated(worker: EngineWorker, clearing: Clearing, prefixes: dict[int, tuple[int, ...]], text: str = "") -> None:
    """Run the grants of a round; `prefixes`, the answers so far, grow."""

    async def run() -> list[Generation]:
        grants = [
            Grant(str(index), asked_directly(PROMPTS[index], text), int(tokens), prefix_token_ids=prefixes[index])
            for index, tokens in zip(clearing.index_M, clearing.tokens_M, strict=True)
        ]
        return [generation async for some in worker.generate(grants) for generation in some]

    for generation in asyncio.run(run()):
        assert not generation.error
        prefixes[int(generation.query_id)] += generation.token_ids


def test_an_answer_fills_the_context_over_its_rounds_and_goes_no_further(worker: EngineWorker) -> None:
    estimates = probed(worker, [{"prompt": prompt, "max_tokens": MAX_TOKENS} for prompt in PROMPTS])
    room_N = CONTEXT - estimates["prompt_tokens"].to_numpy()
    assert room_N[0] > MAX_TOKENS > room_N[1] > room_N[2] > room_N[3] > 0
    batch = batch_of(estimates)
    np.testing.assert_array_equal(batch.max_tokens_N, np.minimum(room_N, MAX_TOKENS))
    prefixes: dict[int, tuple[int, ...]] = dict.fromkeys(range(len(PROMPTS)), ())
    for available_tokens in (4 * len(PROMPTS), 10_000):
        clearing = clear(
            batch,
            generated_tokens_N=np.array([len(prefixes[index]) for index in range(len(PROMPTS))]),
            is_open_N=np.ones(len(PROMPTS), bool),
            available_tokens=available_tokens,
            policy="uniform",
        )
        generated(worker, clearing, prefixes)
    answered_N = np.array([len(prefixes[index]) for index in range(len(PROMPTS))])
    assert (answered_N <= batch.max_tokens_N).all()
    assert (answered_N == batch.max_tokens_N)[1:].any(), "no answer has come to the end of the context"


def test_the_text_that_asks_for_a_direct_answer_takes_room_too(worker: EngineWorker) -> None:
    rows = [{"prompt": prompt, "max_tokens": MAX_TOKENS} for prompt in PROMPTS]
    estimates = probed(worker, rows, direct_text=DIRECT_TEXT)
    batch = batch_of(estimates)
    asked = probed(worker, [row | {"prompt": asked_directly(row["prompt"], DIRECT_TEXT)} for row in rows[:3]])
    np.testing.assert_array_equal(batch.max_tokens_N[:3], batch_of(asked).max_tokens_N)
    assert (estimates["prompt_tokens"].to_numpy()[:3] < asked["prompt_tokens"].to_numpy()).all()
    service = minimum_service(
        batch.take(np.arange(3)),
        owed_tokens_N=owed_tokens(np.ones(3, bool), batch.max_tokens_N[:3], CONTEXT),
        available_tokens=10_000,
        shadow_price=0.0,
    )
    generated(worker, service, dict.fromkeys(range(3), ()), DIRECT_TEXT)


def test_a_text_for_which_there_is_no_room_takes_none(worker: EngineWorker) -> None:
    rows = [{"prompt": PROMPTS[3], "max_tokens": MAX_TOKENS}]
    plain, direct = probed(worker, rows), probed(worker, rows, direct_text="Give the number. " * 20)
    assert plain["max_tokens"].to_pylist() == direct["max_tokens"].to_pylist()
    assert plain["max_tokens"].to_pylist()[0] > 0


def test_a_prompt_without_room_fails_as_it_did(worker: EngineWorker) -> None:
    estimates = probed(worker, [{"prompt": STORY * 40, "max_tokens": MAX_TOKENS}])
    assert "no room for an answer" in estimates["error"].to_pylist()[0]
    assert estimates["max_tokens"].to_pylist() == [MAX_TOKENS]


def test_a_recording_is_bound_by_no_context(replay_settings: dict[str, Any]) -> None:
    recorded = ReplayConfig.model_validate(replay_settings["engine"])
    replaying = EngineWorker(recorded, HEAD)
    rows = [{"query_id": query_id, "prompt": "?", "max_tokens": 100_000} for query_id in known_ids(recorded, 4)]
    estimates = probed(replaying, rows, direct_text=DIRECT_TEXT)
    assert estimates["max_tokens"].to_pylist() == [100_000] * 4
