"""Answers reach the disk before their call ends, as one step a file, and none is generated twice."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.engine.base import Generation, Grant
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.entries import Balance
from clear_ray.ledger.market import MarketActor
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.attempts import read_attempts
from clear_ray.stages.attempt_files import AttemptFiles, GenerateToFiles, _RoundFiles, round_folder, slim_attempts
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import Folder, open_folder
from tests.unit.local_actors import LocalActor, LocalWorker
from tests.unit.simulation import GRANTED_SCHEMA, query_row
from tests.unit.stages.test_probe import known_ids


@dataclass(frozen=True)
class FullDisk(Folder):
    """A folder on a disk that has no room left."""

    def child(self, name: str) -> Folder:
        return replace(self, path=f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)


@dataclass(frozen=True)
class ClosedGate(Folder):
    """A folder on a disk that writes nothing before its gate opens."""

    gate: threading.Event

    def child(self, name: str) -> Folder:
        return replace(self, path=f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        assert self.gate.wait(60)
        super().write(name, content)


@pytest.fixture
def recorded(replay_settings: dict[str, Any]) -> ReplayConfig:
    return ReplayConfig.model_validate(replay_settings["engine"])


def row(index: int) -> dict[str, Any]:
    ended = {"round": 1, "attempt": 1, "granted_tokens": 4, "attempt_tokens": 1, "finish_reason": "stop", "text": "x"}
    return (
        query_row(index) | ended | {"token_ids": [5], "answer_tokens": 1, "correct": None, "error": "", "seconds": 0.0}
    )


def rows_in(folder: Folder) -> list[list[int]]:
    return [pq.read_table(path)["index"].to_pylist() for path in folder.files(".parquet")]


def granted(query_ids: list[str]) -> pa.Table:
    rows = [
        query_row(index) | {"query_id": query_id, "token_ids": [], "round": 1, "granted_tokens": 40}
        for index, query_id in enumerate(query_ids)
    ]
    return pa.Table.from_pylist(rows, schema=GRANTED_SCHEMA)


@dataclass
class Sending:
    """Sends rows to a caller in calls, a few at a time, as `cluster.callers` does."""

    caller: GenerateToFiles
    call_rows: int
    calls_in_flight: int

    def __post_init__(self) -> None:
        self.slots, self.turn = asyncio.Semaphore(self.calls_in_flight), asyncio.Lock()

    async def said_of(self, rows: pa.Table) -> list[int]:
        """Return which queries have attempts on disk, in order of dispatch."""
        calls = []
        async with self.turn:
            for first in range(0, len(rows), self.call_rows):
                await self.slots.acquire()
                calls.append(asyncio.ensure_future(self.caller.attempts(rows.slice(first, self.call_rows))))
                calls[-1].add_done_callback(lambda _: self.slots.release())
        return [index for table in await asyncio.gather(*calls) for index in sorted(table["index"].to_pylist())]


def generated(recorded: ReplayConfig, run_dir: Path, target: Folder, batch: pa.Table) -> tuple[list[int], Balance]:
    """Have a caller of its own generate a batch; return which queries it says are written, and the account."""

    async def call() -> tuple[list[int], Balance]:
        market = MarketActor(str(run_dir), 10_000, len(batch))
        worker = LocalWorker(EngineWorker(recorded, PriorHead(cap_tokens=320)))
        workers = Workers([worker], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
        caller = Sending(GenerateToFiles(dispatch, target, rows_per_file=64), call_rows=2, calls_in_flight=2)
        try:
            return await caller.said_of(batch), await market.balance()
        finally:
            market._journal.close()

    return asyncio.run(call())


def test_a_file_is_written_when_it_is_full(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))

    async def add_five() -> None:
        files = AttemptFiles(folder, rows_per_file=2, linger_seconds=1e6)
        parts = [*files.add([row(0)]), *files.add([row(1), row(2)]), *files.add([row(3), row(4)])]
        assert [(part.first, part.rows) for part in parts] == [(0, 1), (1, 1), (0, 1), (1, 1), (0, 1)]
        written = [(await part.file)["index"][part.first].as_py() for part in parts[:4]]
        assert written == [0, 1, 2, 3]
        assert not parts[4].file.done()
        files.flush()
        await parts[4].file

    asyncio.run(add_five())
    assert sorted(rows_in(folder)) == [[0, 1], [2, 3], [4]]


def test_a_row_that_has_waited_long_is_written_without_company(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))

    async def add_one() -> None:
        await AttemptFiles(folder, rows_per_file=64, linger_seconds=0.01).add([row(7)])[0].file

    asyncio.run(asyncio.wait_for(add_one(), 60))
    assert rows_in(folder) == [[7]]


def test_a_call_ends_when_its_answers_are_on_disk_and_not_before(recorded: ReplayConfig, tmp_path: Path) -> None:
    batch = granted(known_ids(recorded, 4))
    gate = threading.Event()
    inner = open_folder(str(tmp_path / "attempts"))
    target = ClosedGate(inner.filesystem, inner.path, inner.is_local, gate)
    at_the_gate: list[list[list[int]]] = []

    def open_later() -> None:
        at_the_gate.append(rows_in(target))
        gate.set()

    timer = threading.Timer(2.0, open_later)
    timer.start()
    said, balance = generated(recorded, tmp_path, target, batch)
    assert gate.is_set()
    assert at_the_gate == [[]]
    assert sorted(said) == sorted(index for file in rows_in(target) for index in file) == [0, 1, 2, 3]
    assert balance.wasted_tokens == 0


def test_a_caller_that_takes_over_generates_nothing_that_is_on_disk(recorded: ReplayConfig, tmp_path: Path) -> None:
    batch = granted(known_ids(recorded, 6))
    target = open_folder(str(tmp_path / "attempts"))
    _, before = generated(recorded, tmp_path, target, batch.slice(0, 4))
    said, after = generated(recorded, tmp_path, target, batch)
    assert said == [0, 1, 2, 3, 4, 5], "what is there is told"
    assert sorted(index for file in rows_in(target) for index in file) == [0, 1, 2, 3, 4, 5]
    assert after.wasted_tokens == 0
    assert after.spent_tokens > before.spent_tokens


class Counted(EngineWorker):
    """A worker that tells which queries it has begun, and how many calls it had at most."""

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config, PriorHead(cap_tokens=320))
        self.begun: list[str] = []
        self.open = self.most_open = 0

    async def generate(self, grants: Sequence[Grant], is_alone: bool = False) -> AsyncIterator[list[Generation]]:
        self.begun += [grant.query_id for grant in grants]
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            async for generations in super().generate(grants, is_alone):
                yield generations
        finally:
            self.open -= 1


def stage(market: MarketActor, worker: EngineWorker, target: Folder) -> Sending:
    """Return a caller with three calls of two queries."""
    workers = Workers([LocalWorker(worker)], lambda _: False, lambda _: None, 900.0)
    dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
    return Sending(GenerateToFiles(dispatch, target, rows_per_file=8), call_rows=2, calls_in_flight=3)


def test_two_blocks_share_the_calls_and_begin_in_their_order(recorded: ReplayConfig, tmp_path: Path) -> None:
    query_ids = known_ids(recorded, 40)
    whole, worker = granted(query_ids), Counted(recorded)

    async def both() -> list[list[int]]:
        market = MarketActor(str(tmp_path), 10_000, len(whole))
        caller = stage(market, worker, open_folder(str(tmp_path / "attempts")))
        try:
            return await asyncio.gather(caller.said_of(whole.slice(0, 20)), caller.said_of(whole.slice(20)))
        finally:
            market._journal.close()

    said = asyncio.run(both())
    assert said == [list(range(20)), list(range(20, 40))]
    assert worker.begun == query_ids
    assert worker.most_open == 3


def test_a_store_that_stands_still_holds_back_all_but_the_calls_in_flight(
    recorded: ReplayConfig, tmp_path: Path
) -> None:
    query_ids = known_ids(recorded, 40)
    whole, worker, gate = granted(query_ids), Counted(recorded), threading.Event()
    inner = open_folder(str(tmp_path / "attempts"))

    async def held_back() -> tuple[int, Balance, list[int]]:
        market = MarketActor(str(tmp_path), 10_000, len(whole))
        caller = stage(market, worker, ClosedGate(inner.filesystem, inner.path, inner.is_local, gate))
        running = asyncio.ensure_future(caller.said_of(whole))
        try:
            while (await market.balance()).spent_tokens == 0 or (await market.balance()).reserved_tokens:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # nothing comes after
            begun, balance = len(worker.begun), await market.balance()
            gate.set()
            return begun, balance, await running
        finally:
            gate.set()
            market._journal.close()

    begun, balance, said = asyncio.run(asyncio.wait_for(held_back(), 100))
    assert begun == 6, "three calls of two queries"
    assert balance.spent_tokens <= 6 * 40
    assert balance.reserved_tokens == 0
    assert said == list(range(40))


class Gated(EngineWorker):
    """A worker that generates nothing while its gate is closed."""

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config, PriorHead(cap_tokens=320))
        self.gate = asyncio.Event()

    async def generate(self, grants: Sequence[Grant], is_alone: bool = False) -> AsyncIterator[list[Generation]]:
        await self.gate.wait()
        async for generations in super().generate(grants, is_alone):
            yield generations


def test_a_caller_that_begins_its_new_life_with_another_block_waits_for_nothing_of_the_old_one(
    recorded: ReplayConfig, tmp_path: Path
) -> None:
    """What it had reserved for the first block would be charged only when that comes again, for which no call is free."""
    tokens = [100] * 8 + [10] * 16
    whole = granted(known_ids(recorded, 24))
    whole = whole.set_column(whole.schema.get_field_index("granted_tokens"), "granted_tokens", pa.array(tokens))
    first, second = whole.slice(0, 4), whole.slice(4)

    async def both() -> Balance:
        market, worker = MarketActor(str(tmp_path), 850, len(whole)), Gated(recorded)
        workers = Workers([LocalWorker(worker)], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(
            workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0, this_caller=lambda: "a"
        )

        def caller() -> Sending:
            target = open_folder(str(tmp_path / "attempts"))
            return Sending(GenerateToFiles(dispatch, target, rows_per_file=64), call_rows=4, calls_in_flight=2)

        old = caller()
        dying = [asyncio.ensure_future(old.caller.attempts(block)) for block in (first, second.slice(0, 4))]
        while (await market.balance()).reserved_tokens < 800:
            await asyncio.sleep(0.01)
        for call in dying:
            call.cancel()
        await asyncio.wait(dying)
        worker.gate.set()
        new = caller()
        later = asyncio.ensure_future(new.said_of(second))
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(asyncio.gather(later, new.said_of(first)), 60)
            return await market.balance()
        finally:
            market._journal.close()

    balance = asyncio.run(both())
    assert (balance.wasted_tokens, balance.reserved_tokens) == (800, 0)
    assert 800 < balance.spent_tokens <= 850


class Failing(EngineWorker):
    """A worker whose first call raises what Ray would have repeated."""

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config, PriorHead(cap_tokens=320))
        self.calls = 0

    async def generate(self, grants: Sequence[Grant], is_alone: bool = False) -> AsyncIterator[list[Generation]]:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("the network is down")
        async for generations in super().generate(grants, is_alone):
            yield generations


def test_a_block_that_comes_again_to_the_same_caller_waits_for_nothing_of_its_first_time(
    recorded: ReplayConfig, tmp_path: Path
) -> None:
    whole = granted(known_ids(recorded, 4))
    whole = whole.set_column(
        whole.schema.get_field_index("granted_tokens"), "granted_tokens", pa.array([100, 150, 120, 120])
    )

    async def again() -> tuple[list[list[int]], Balance]:
        market = MarketActor(str(tmp_path), 490, len(whole))
        workers = Workers([LocalWorker(Failing(recorded))], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(
            workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0, this_caller=lambda: "a"
        )
        target = open_folder(str(tmp_path / "attempts"))
        caller = Sending(GenerateToFiles(dispatch, target, rows_per_file=64), call_rows=1, calls_in_flight=2)
        try:
            with pytest.raises(RuntimeError, match="network"):
                await caller.said_of(whole.slice(0, 2))
            both = asyncio.gather(caller.said_of(whole.slice(2)), caller.said_of(whole.slice(0, 2)))
            said = await asyncio.wait_for(both, 60)
            spent = (await market.balance()).spent_tokens
            assert await caller.said_of(whole.slice(2)) == [2, 3], "what is written is known"
            assert (await market.balance()).spent_tokens == spent
            return said, await market.balance()
        finally:
            market._journal.close()

    said, balance = asyncio.run(again())
    assert said[0] == [2, 3]
    assert balance.reserved_tokens == 0
    assert 100 <= balance.wasted_tokens <= 250


def test_a_row_whose_attempt_was_charged_as_lost_is_no_answer(recorded: ReplayConfig, tmp_path: Path) -> None:
    """A caller that was taken for dead writes its row after all: the query is generated again, and counts once."""
    folder, batch = open_folder(str(tmp_path)), granted(known_ids(recorded, 2))
    target = round_folder(folder, 1)

    async def generated_again() -> tuple[list[int], VoidAttempts, Balance]:
        market = MarketActor(str(tmp_path), 10_000, len(batch))
        (attempt,) = await market.reserve(1, [(0, 40)])
        await market.forfeit([(0, attempt)])
        late = AttemptFiles(target, rows_per_file=1)
        await late.add([row(0) | {"attempt": attempt}])[0].file
        try:
            said = await stage(market, EngineWorker(recorded, PriorHead(cap_tokens=320)), folder).said_of(batch)
            return said, VoidAttempts(await market.void_attempts()), await market.balance()
        finally:
            market._journal.close()

    said, void, balance = asyncio.run(generated_again())
    assert said == [0, 1]
    counted = list(read_attempts(folder, 1, 2, void))
    assert sorted(index for some in counted for index in some.index_M.tolist()) == [0, 1]
    assert sum(int(some.attempt_tokens_M.sum()) for some in counted) == balance.spent_tokens - balance.wasted_tokens
    rows = pa.concat_tables([pq.read_table(path) for path in target.files()])
    kept = void.dropped_from(rows)
    assert len(rows) == len(kept) + 1
    assert sorted(zip(kept["index"].to_pylist(), kept["attempt"].to_pylist(), strict=True)) == [(0, 2), (1, 1)]


def test_a_row_that_cannot_be_written_as_one_ends_its_call(tmp_path: Path) -> None:
    async def add_one() -> None:
        await AttemptFiles(open_folder(str(tmp_path)), rows_per_file=1).add([row(1) | {"text": 5}])[0].file

    with pytest.raises((TypeError, pa.ArrowException)):
        asyncio.run(asyncio.wait_for(add_one(), 60))


def test_a_full_disk_is_raised_by_the_call_that_fills_it(recorded: ReplayConfig, tmp_path: Path) -> None:
    batch = granted(known_ids(recorded, 2))
    inner = open_folder(str(tmp_path / "attempts"))
    with pytest.raises(OSError, match="No space left"):
        generated(recorded, tmp_path, FullDisk(inner.filesystem, inner.path, inner.is_local), batch)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(OSError, match="taken"):
        open_folder(str(tmp_path)).write("taken.parquet", b"rows")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.parquet"]


def test_a_call_is_answered_where_its_prompts_were_read(recorded: ReplayConfig, tmp_path: Path) -> None:
    queries = granted(known_ids(recorded, 6))

    async def call() -> list[int]:
        market = MarketActor(str(tmp_path / "run"), 10_000, len(queries))
        each = [EngineWorker(recorded, PriorHead(cap_tokens=320)) for _ in range(3)]
        workers = Workers([LocalWorker(worker) for worker in each], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
        caller = GenerateToFiles(dispatch, open_folder(str(tmp_path / "run")), rows_per_file=64)
        for first, home in ((0, 2), (2, 0), (4, 2)):
            await caller.attempts(queries.slice(first, 2), home=home)
        market._journal.close()
        return [worker.occupancy.tokens for worker in each]

    first, second, third = asyncio.run(call())
    assert first > 0 < third
    assert second == 0


def test_what_was_read_before_is_counted_beside_what_grants_began_with() -> None:
    goes_on = {"cached_tokens": 109, "attempt_tokens": 5, "answer_tokens": 15}
    attempts = pa.Table.from_pylist([row(0) | goes_on, row(1)], schema=ATTEMPT_SCHEMA)
    assert slim_attempts(attempts, "f")["cached_tokens"].to_pylist() == [109, None]
    answers = AnswerFiles(np.array([100, 40]))
    answers.note(slim_attempts(attempts, "f"))
    assert (answers.asked_tokens, answers.cached_tokens) == (100 + 10 + 40, 109)


def test_answers_wait_for_company_where_many_are_under_way(tmp_path: Path) -> None:
    files = _RoundFiles(round_folder(open_folder(str(tmp_path)), 1), 64)
    waits = []

    async def none() -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(0)
        waits.append(files._files.linger_seconds)
        return
        yield {}

    async def calls() -> None:
        await files.write_all(none(), 64)
        await asyncio.gather(files.write_all(none(), 64), files.write_all(none(), 64))
        await files.write_all(none(), 1)

    asyncio.run(calls())
    assert waits[1] > waits[0] == waits[2] == waits[3], "few, twice as many, and few again"
