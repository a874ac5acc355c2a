"""What was said to be on disk is there after a loss of power, and every sync in the code is needed for that."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ConfigError
from clear_ray.estimation.head import load_head, save_head
from clear_ray.estimation.prior import PriorHead
from clear_ray.ingest import (
    IntakeRules,
    ReadingRules,
    SourceBatch,
    ingest,
    read_digest,
    write_openai_outputs,
)
from clear_ray.ledger import journal as journal_module
from clear_ray.ledger.entries import Call
from clear_ray.ledger.journal import Journal, Record, read_journal
from clear_ray.ledger.market import MarketActor
from clear_ray.ledger.void import VoidAttempts
from clear_ray.rounds.clearing import nothing_to_grant
from clear_ray.rounds.running import Round
from clear_ray.run_folder.attempts import read_attempts
from clear_ray.run_folder.grants import read_grants, write_grants
from clear_ray.stages.attempt_files import AttemptFiles
from clear_ray.storage import Folder, open_folder
from tests.unit.ingest.test_openai_output import ROWS, read_lines
from tests.unit.ledger.power_loss import Disk, Site, play
from tests.unit.ledger.test_market import settled
from tests.unit.stages.test_attempt_files import row

RECORDS: list[Record] = [{"round": 1}, *({"op": "reserve", "i": i, "a": 1, "t": 7, "r": 1} for i in range(3))]


def records_in(left: Folder) -> list[Record]:
    return list(read_journal(left.child("runs/mine")))


def run_folder(disk: Disk) -> Folder:
    return open_folder(f"{disk.root}/runs/mine")


def journal_of_a_new_run(disk: Disk) -> None:
    told: list[Record] = []

    def expected(left: Folder) -> None:
        found = records_in(left)
        assert found[: len(told)] == told
        assert found == RECORDS[: len(found)]

    disk.whenever_it_is_cut(expected)
    journal = Journal(run_folder(disk))
    for records in (RECORDS[:1], RECORDS[1:3], RECORDS[3:]):
        journal.append(records)
        told += records
        disk.cut()
    journal.close()


def journal_of_a_writer_that_was_killed_before_its_sync(disk: Disk) -> None:
    """What the next writer has read it answers from, without a record of its own: it has to be on disk by then."""
    path = disk.root / "runs" / "mine" / "journal.jsonl"
    path.parent.mkdir(parents=True)
    for folder in (disk.root, disk.root / "runs", path.parent):
        sync_from_elsewhere(folder)
    lines = [journal_module._encode(record) for record in RECORDS]
    path.write_bytes(b"".join(lines)[:-3])
    journal = Journal(run_folder(disk))
    told = list(read_journal(run_folder(disk)))

    def expected(left: Folder) -> None:
        assert records_in(left)[: len(told)] == told

    disk.whenever_it_is_cut(expected)
    journal.append(RECORDS[3:])
    told += RECORDS[3:]
    journal.close()
    assert told == RECORDS


def market_with_callers(disk: Disk) -> None:
    told: list[tuple[str, int]] = []

    def expected(left: Folder) -> None:
        found = [(record["op"], record["i"]) for record in records_in(left) if "op" in record]
        assert set(told) <= set(found), "a caller acts on what the journal has lost"

    async def call(market: MarketActor, index: int) -> None:
        (attempt,) = await market.reserve(1, [(index, 10)])
        told.append(("reserve", index))
        disk.cut()
        await market.settle([settled(index, attempt, 4)])
        told.append(("settle", index))
        disk.cut()

    async def crowd() -> None:
        market = MarketActor(str(disk.root / "runs" / "mine"), 100, 3)
        disk.whenever_it_is_cut(expected)
        await asyncio.gather(*(call(market, index) for index in range(3)))
        market._journal.close()

    asyncio.run(crowd())


def market_asked_again_for_what_a_killed_one_had_written(disk: Disk) -> None:
    """Ray repeats a call that a dead market had not answered; the answer needs no record of its own."""
    call = Call("caller", "life", 1)
    old = [
        {"caller": call.caller, "life": call.life},
        {"op": "reserve", "i": 0, "a": 1, "t": 10, "r": 1, "c": call.name},
    ]
    path = disk.root / "runs" / "mine" / "journal.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(map(journal_module._encode, old)))
    for made in (disk.root, disk.root / "runs"):
        sync_from_elsewhere(made)

    def expected(left: Folder) -> None:
        assert records_in(left) == old, "a reservation is lost"

    market = MarketActor(str(path.parent), 100, 3)
    assert asyncio.run(market.reserve(1, [(0, 10)], call)) == [1]
    disk.whenever_it_is_cut(expected)
    market._journal.close()


def file_written_twice(disk: Disk) -> None:
    allowed: set[bytes | None] = {None, b"old"}

    def expected(left: Folder) -> None:
        there = left.child("runs/mine")
        assert (there.read("file") if there.exists("file") else None) in allowed

    disk.whenever_it_is_cut(expected)
    for content in (b"old", b"new and longer"):
        allowed.add(content)
        run_folder(disk).write("file", content)
        allowed.clear()
        allowed.add(content)
        disk.cut()


def folder_said_to_be_whole(disk: Disk) -> None:
    """As the estimates are: others have written them, and a file tells that all of them are there."""
    estimates = run_folder(disk).child("estimates").child("part")

    def expected(left: Folder) -> None:
        there = left.child("runs/mine")
        if there.exists("estimates.json"):
            assert pq.read_table(f"{there.path}/estimates/part/a.parquet")["index"].to_pylist() == [0, 1]

    run_folder(disk).make()
    os.makedirs(estimates.path)
    pq.write_table(pa.table({"index": [0, 1]}), f"{estimates.path}/a.parquet")
    disk.whenever_it_is_cut(expected)
    run_folder(disk).child("estimates").sync()
    run_folder(disk).write("estimates.json", b"{}")


def folder_in_the_place_of_another(disk: Disk) -> None:
    allowed: list[list[str] | None] = [None]

    def expected(left: Folder) -> None:
        there = left.child("runs/mine")
        found = None
        if there.exists("completions/deep"):
            found = [Path(path).read_text() for path in there.child("completions").files()]
        assert found in allowed

    disk.whenever_it_is_cut(expected)
    run_folder(disk).make()
    allowed.append(["1", "2"])
    with run_folder(disk).replacing("completions") as growing:
        os.makedirs(f"{growing.path}/deep")
        for name in ("1", "2"):
            Path(growing.path, "deep", name).write_text(name)
    allowed.remove(None)
    disk.cut()


def queries_taken_in(disk: Disk) -> None:
    digest = None

    def expected(left: Folder) -> None:
        queries = left.child("runs/mine/queries")
        assert digest is None or read_digest(queries) == digest
        if queries.exists():
            (path,) = queries.files(".parquet")
            assert pq.read_table(path)["prompt"].to_pylist() == ["1 + 1?"]

    disk.whenever_it_is_cut(expected)
    batch = SourceBatch([{"query_id": "a", "prompt": "1 + 1?"}], "row", range(1, 2))
    digest = ingest(
        [batch], queries=run_folder(disk).child("queries"), rules=IntakeRules(reading=ReadingRules(max_tokens=9))
    )
    disk.cut()


def answers_for_openai_clients(disk: Disk) -> None:
    is_told = False

    def expected(left: Folder) -> None:
        there = left.child("runs/mine")
        for name, lines in (("output.jsonl", 2), ("errors.jsonl", len(ROWS) - 2)):
            assert len(read_lines(there, name)) == lines if is_told or there.exists(name) else True

    run_folder(disk).make()
    disk.whenever_it_is_cut(expected)
    write_openai_outputs(iter(ROWS), run_folder(disk), model="m")
    is_told = True
    disk.cut()


def grants_of_a_round(disk: Disk) -> None:
    is_told = False
    some_M = np.arange(2)
    clearing = replace(nothing_to_grant(2), index_M=some_M, tokens_M=some_M, expected_tokens_M=some_M / 2)
    clearing = replace(clearing, expected_utility_M=some_M / 4)

    def expected(left: Folder) -> None:
        found = read_grants(left.child("runs/mine"), 1)
        assert found is not None or not is_told
        assert found is None or found.clearing.tokens_M.tolist() == [0, 1]

    run_folder(disk).make()
    disk.whenever_it_is_cut(expected)
    write_grants(run_folder(disk), Round(1, 100, clearing))
    is_told = True
    disk.cut()


def attempts_of_a_round(disk: Disk) -> None:
    told: set[int] = set()

    def expected(left: Folder) -> None:
        found = read_attempts(left.child("runs/mine"), 1, 4, VoidAttempts())
        assert told <= {index for attempts in found for index in attempts.index_M.tolist()}

    async def write() -> None:
        files = AttemptFiles(run_folder(disk).child("rounds").child("r01"), rows_per_file=2)
        for first in (0, 2):
            writes = {part.file for part in files.add([row(index) for index in (first, first + 1)])}
            await asyncio.gather(*writes)
            told.update((first, first + 1))
            disk.cut()

    run_folder(disk).make()
    disk.whenever_it_is_cut(expected)
    asyncio.run(write())


def head_saved(disk: Disk) -> None:
    is_told = False
    head = PriorHead(cap_tokens=40)

    def expected(left: Folder) -> None:
        try:
            assert load_head(f"{left.path}/heads/mine").card == head.card
        except ConfigError:
            assert not is_told

    disk.whenever_it_is_cut(expected)
    save_head(head, disk.root / "heads" / "mine")
    is_told = True
    disk.cut()


def sync_from_elsewhere(path: Path) -> None:
    """Sync as another process did, long before."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


SCENARIOS: list[Callable[[Disk], None]] = [
    journal_of_a_new_run,
    journal_of_a_writer_that_was_killed_before_its_sync,
    market_with_callers,
    market_asked_again_for_what_a_killed_one_had_written,
    file_written_twice,
    folder_said_to_be_whole,
    folder_in_the_place_of_another,
    queries_taken_in,
    answers_for_openai_clients,
    grants_of_a_round,
    attempts_of_a_round,
    head_saved,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_what_was_told_survives_a_loss_of_power(scenario: Callable[[Disk], None], tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    assert play(scenario, root)


def test_no_sync_can_be_left_out(tmp_path: Path) -> None:
    """Each place that syncs is made to do nothing, in turn: a scenario above must see what that loses."""
    played: dict[Callable[[Disk], None], set[Site]] = {}
    for scenario in SCENARIOS:
        (root := tmp_path / scenario.__name__).mkdir()
        played[scenario] = play(scenario, root)
    seen_by: dict[Site, list[str]] = {site: [] for sites in played.values() for site in sites if site}
    for number, (site, names) in enumerate(seen_by.items()):
        for scenario in (scenario for scenario, sites in played.items() if site in sites):
            (root := tmp_path / f"{scenario.__name__}-{number}").mkdir()
            try:
                play(scenario, root, ignored=site)
            except Exception:  # whatever the code or the check says of what is left
                names.append(scenario.__name__)
                break
    idle = [" < ".join(f"{file}:{line}" for file, line in site) for site, names in seen_by.items() if not names]
    assert not idle, f"nothing is lost without these syncs: {json.dumps(idle, indent=2)}"
    assert len(seen_by) > 8
