"""Answers on their way to disk: written by the caller that settled them, a few at a time.

A call ends, and the next one begins, only when its answers are on disk. So what is settled and not yet written is never
more than the calls in flight, however slow the disk is, and a disk that fails ends the calls that would have settled more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.stages.answer_parts import part_of
from clear_ray.stages.generate import Dispatch, Generate, Rows
from clear_ray.stages.granted import GrantedCall, RunRows
from clear_ray.storage import Folder, read_many

_LINGER_SECONDS, _FEW_LINGER_SECONDS, _FEW_ROWS = 1.0, 0.2, 64
"""How long an answer waits for others of its file; where few rows are under way, they would come one by one, and late."""

SLIM_ATTEMPT_SCHEMA = pa.schema(
    [
        *(
            ATTEMPT_SCHEMA.field(name).with_nullable(True)
            for name in ("index", "attempt", "granted_tokens", "attempt_tokens", "correct")
        ),
        pa.field("vote", pa.int64()),
        pa.field("answer_tokens", pa.int64()),
        pa.field("has_stopped", pa.bool_()),
        pa.field("has_failed", pa.bool_()),
        pa.field("is_at_end", pa.bool_()),
        pa.field("cached_tokens", pa.int64()),
        pa.field("file", pa.string()),
    ]
)
"""What the driver hears of an attempt: numbers, whether it ended by itself, failed, or cannot go on, and its file."""

READ_OF_ATTEMPT = (
    "index",
    "attempt",
    "granted_tokens",
    "attempt_tokens",
    "answer_tokens",
    "finish_reason",
    "correct",
    "error",
    "is_at_end",
    "vote",
    "cached_tokens",
)


def slim_attempts(table: pa.Table, file: str) -> pa.Table:
    """Return attempts as the driver keeps them, from the columns `READ_OF_ATTEMPT` of `records.ATTEMPT_SCHEMA`."""
    has_failed = pc.not_equal(table["error"], "").fill_null(False)
    is_cut = pc.equal(table["finish_reason"], "length").fill_null(False)
    is_short = pc.less(table["attempt_tokens"], table["granted_tokens"])
    made = {
        "has_stopped": pc.and_not(pc.equal(table["finish_reason"], "stop").fill_null(False), has_failed),
        "has_failed": has_failed,
        "is_at_end": pc.or_(pc.and_(is_cut, is_short), table["is_at_end"].fill_null(False)),
        "file": pa.repeat(file, len(table)),
    }
    columns = [made[name] if name in made else table[name] for name in SLIM_ATTEMPT_SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SLIM_ATTEMPT_SCHEMA)


def name_in_rounds(path: str) -> str:
    """Return a file's name below `rounds/`, as `SLIM_ATTEMPT_SCHEMA` has it."""
    return "/".join(path.split("/")[-2:])


class GenerateToFiles:
    """A caller of stage 2, for as long as a run: `Generate`, whose attempts go to files; numbers come back.

    Calls begin in the order in which they come and end as they may. What a life of the caller finds on disk when it first
    hears of a round, or has written since, is not generated again.

    Args:
        dispatch: See `Generate`.
        folder: The run folder.
        rows_per_file: See `AttemptFiles`.
    """

    def __init__(self, dispatch: Dispatch, folder: Folder, *, rows_per_file: int) -> None:
        self._dispatch, self._folder, self._rows_per_file = dispatch, folder, rows_per_file
        self._rows = RunRows(folder)
        self._generate: Generate | None = None
        self._turn = asyncio.Lock()
        self._rounds: dict[int, _RoundFiles] = {}
        self._looking, self._looked = asyncio.Lock(), set[int]()
        self._written = LastRounds()

    async def generate(self, call: GrantedCall) -> pa.Table:
        """Generate for one call's grants; return `SLIM_ATTEMPT_SCHEMA` once their attempts are on disk."""
        async with self._turn:  # reading takes calls as they come, each of which asks for tokens before the next
            rows = await asyncio.to_thread(self._rows.granted, call)
            await self._look(call.round)
            self._started().look_again(call.times_ended)
            running = asyncio.ensure_future(self.attempts(rows, call.direct_text, call.home))
        try:
            return await running
        finally:
            running.cancel()

    async def attempts(self, rows: pa.Table, direct_text: str = "", home: int | None = None) -> pa.Table:
        """Return what came of rows of one round, as `generate` does; a query that was refused its tokens has none."""
        number = rows["round"][0].as_py()
        stage = self._started()
        found, due = await self._already_written(number, rows)
        if not len(due):
            return found
        files = self._rounds.setdefault(number, _RoundFiles(round_folder(self._folder, number), self._rows_per_file))
        try:
            written = await files.write_all(stage(due, direct_text, home), len(due))
        except Exception:
            await stage.give_up(due["index"].to_pylist())
            raise
        finally:
            if not files.calls:
                self._rounds.pop(number, None)
        self._written.add(number, written["index"].to_numpy())
        return pa.concat_tables([found, written])

    def _started(self) -> Generate:
        """Return the stage; what keeps it from starting is raised by a call, since a constructor's own error is lost."""
        if self._generate is None:
            self._generate = Generate(self._dispatch)
        return self._generate

    async def _already_written(self, number: int, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the attempts of these rows that are on disk, and the rows that have none."""
        await self._look(number)
        has_attempt_M = self._written.are(number, rows["index"].to_numpy())
        if not has_attempt_M.any():
            return SLIM_ATTEMPT_SCHEMA.empty_table(), rows
        has_attempt = pa.array(has_attempt_M)
        due = rows.filter(pc.invert(has_attempt))
        found = await self._on_disk(number)
        return found.filter(pc.is_in(found["index"], rows["index"].filter(has_attempt))), due

    async def _look(self, number: int) -> None:
        """Note what a life before this one has written of a round."""
        async with self._looking:  # in the order of the calls
            if number not in self._looked:
                self._written.add(number, (await self._on_disk(number))["index"].to_numpy())
                self._looked.add(number)

    async def _on_disk(self, number: int) -> pa.Table:
        folder = round_folder(self._folder, number)
        if not (paths := await asyncio.to_thread(folder.files, ".parquet")):
            return SLIM_ATTEMPT_SCHEMA.empty_table()
        void = VoidAttempts(await self._dispatch.market.void_attempts())
        return await asyncio.to_thread(_attempts_in, folder, paths, void)


def round_folder(folder: Folder, number: int) -> Folder:
    """Return the folder of a round's attempts."""
    return folder.child("rounds").child(f"r{number:02d}")


def _attempts_in(folder: Folder, paths: list[str], void: VoidAttempts) -> pa.Table:
    def read(path: str) -> pa.Table:
        with folder.filesystem.open_input_file(path) as source:
            table = pq.ParquetFile(source).read(columns=list(READ_OF_ATTEMPT))
        return void.dropped_from(slim_attempts(table, name_in_rounds(path)))

    return pa.concat_tables(table for tables in read_many(read, paths) for table in tables)


class _RoundFiles:
    """The files of one round that a caller's calls share.

    Attributes:
        calls: How many of them are open.
    """

    def __init__(self, folder: Folder, rows_per_file: int) -> None:
        self._files = AttemptFiles(folder, rows_per_file)
        self.calls = 0
        self._waiting = self._rows = 0

    async def write_all(self, attempts: AsyncIterator[Rows], rows: int) -> pa.Table:
        """Return `SLIM_ATTEMPT_SCHEMA` of the attempts of so many rows once they are on disk."""
        self.calls += 1
        self._expect(rows)
        try:
            return await self._written([part async for some in attempts for part in self._files.add(some)])
        finally:
            self.calls -= 1
            self._expect(-rows)

    def _expect(self, rows: int) -> None:
        self._rows += rows
        self._files.linger_seconds = _FEW_LINGER_SECONDS if self._rows <= _FEW_ROWS else _LINGER_SECONDS

    async def _written(self, parts: list[FilePart]) -> pa.Table:
        self._waiting += 1
        try:
            if self._waiting == self.calls:  # no call is left that would fill the file
                self._files.flush()
            # Other calls wait for the same files.
            written = [(await asyncio.shield(part.file)).slice(part.first, part.rows) for part in parts]
        finally:
            self._waiting -= 1
        return pa.concat_tables([SLIM_ATTEMPT_SCHEMA.empty_table(), *written])


@dataclass(frozen=True, slots=True)
class FilePart:
    """Rows of a file.

    Attributes:
        file: All of its rows in `SLIM_ATTEMPT_SCHEMA` once it is on disk, or the disk's error.
        first: The first of them.
        rows: How many.
    """

    file: asyncio.Future[pa.Table]
    first: int
    rows: int


class AttemptFiles:
    """Collects attempts and writes them to files of a folder, each file as one step.

    Args:
        folder: Folder to write to.
        rows_per_file: A file is written as soon as it has so many rows,
        linger_seconds: or when its first row has waited so long.
    """

    def __init__(self, folder: Folder, rows_per_file: int, linger_seconds: float = _LINGER_SECONDS) -> None:
        self._folder, self._rows_per_file, self.linger_seconds = folder, rows_per_file, linger_seconds
        self._collected: Rows = []
        self._write: asyncio.Future[pa.Table]
        self._timer: asyncio.TimerHandle
        self._running: set[asyncio.Task[None]] = set()

    def add(self, attempts: Rows) -> list[FilePart]:
        """Take rows of `records.ATTEMPT_SCHEMA`; return where they will be."""
        parts, taken = [], 0
        while taken < len(attempts):
            if not self._collected:
                loop = asyncio.get_running_loop()
                self._write, self._timer = loop.create_future(), loop.call_later(self.linger_seconds, self.flush)
            some = attempts[taken : taken + self._rows_per_file - len(self._collected)]
            parts.append(FilePart(self._write, len(self._collected), len(some)))
            self._collected += some
            taken += len(some)
            if len(self._collected) >= self._rows_per_file:
                self.flush()
        return parts

    def flush(self) -> None:
        """Start writing what has been collected, without waiting for more."""
        if self._collected:
            self._timer.cancel()
            attempts, self._collected = self._collected, []
            task = asyncio.ensure_future(self._write_file(attempts, self._write))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _write_file(self, attempts: Rows, write: asyncio.Future[pa.Table]) -> None:
        try:
            written = await asyncio.to_thread(self._write_rows, attempts)
        except Exception as error:  # raised by every call that has a row in the file
            write.set_exception(error)
        else:
            write.set_result(written)

    def _write_rows(self, attempts: Rows) -> pa.Table:
        sink, name = BytesIO(), f"{uuid4().hex}.parquet"
        table = pa.Table.from_pylist([part_of(attempt) for attempt in attempts], schema=ATTEMPT_SCHEMA)
        pq.write_table(table, sink, use_dictionary=False, write_statistics=False)  # few rows: neither pays
        self._folder.write(name, sink.getvalue())
        return slim_attempts(table, name_in_rounds(f"{self._folder.path}/{name}"))


class LastRounds:
    """The round of each query's last attempt that a caller knows of, four bytes a query: there may be millions of them."""

    def __init__(self) -> None:
        self._round_N = np.zeros(0, np.int32)

    def add(self, number: int, index: NDArray[np.int64]) -> None:
        """Note that some queries have an attempt in a round."""
        most = int(index.max(initial=-1)) + 1
        if most > len(self._round_N):
            self._round_N = np.pad(self._round_N, (0, 2 * most - len(self._round_N)))
        self._round_N[index] = number

    def are(self, number: int, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each of these queries whether its last attempt is of a round."""
        is_known = index < len(self._round_N)
        if is_known.any():
            is_known &= self._round_N[np.where(is_known, index, 0)] == number
        return is_known
