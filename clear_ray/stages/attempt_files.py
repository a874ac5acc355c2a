"""The answers of a round on their way to disk: written by the caller that settled them, a few at a time.

A call ends, and the next one begins, only when its answers are on disk. So what is settled and not yet written is never
more than the calls in flight, however slow the disk is, and a disk that fails ends the calls that would have settled more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.stages.generate import Dispatch, Generate, Row
from clear_ray.storage import Folder, read_many

WRITTEN_SCHEMA = pa.schema([pa.field("index", pa.int64(), nullable=False)])


class GenerateToFiles:
    """Callable for `map_batches`: `Generate`, whose attempts go to files; only which queries they are of travels on.

    A batch is a long stretch of the order of dispatch, cut into calls here: a task of Ray Data costs as much as hundreds of
    queries. Batches begin one after the other and end as they may, so with two of them open no slot waits for a batch's end.

    Args:
        dispatch: See `Generate`.
        folder: Folder of the round's attempts; those found there when the caller starts are not generated again.
        rows_per_file: See `AttemptFiles`.
        call_rows: Queries in one call to an engine.
        calls_in_flight: Calls that are open at the same time, over all batches.
    """

    def __init__(
        self, dispatch: Dispatch, folder: Folder, *, rows_per_file: int, call_rows: int, calls_in_flight: int
    ) -> None:
        self._generate = Generate(dispatch)
        self._files = AttemptFiles(folder, rows_per_file)
        self._folder, self._market = folder, dispatch.market
        self._written: Indices | None = None
        self._looking = asyncio.Lock()
        self._call_rows = call_rows
        self._slots = asyncio.Semaphore(calls_in_flight)
        self._turn = asyncio.Lock()
        self._calls = 0
        self._calls_waiting = 0

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Generate for one batch of granted queries; yield rows of `WRITTEN_SCHEMA` once their attempts are on disk."""
        written = await self._already_written()
        due = batch.filter(pa.array(~written.has(batch["index"].to_numpy())))
        started: list[asyncio.Task[list[int]]] = []
        try:
            async with asyncio.TaskGroup() as calls, self._turn:
                for first in range(0, len(due), self._call_rows):
                    await self._slots.acquire()
                    call = calls.create_task(self._call(due.slice(first, self._call_rows)))
                    call.add_done_callback(lambda _: self._slots.release())
                    started.append(call)
        except ExceptionGroup as failures:  # the first is the cause
            await self._generate.give_up(due["index"].to_pylist())
            raise failures.exceptions[0] from None
        indices = [index for call in started for index in call.result()]
        yield pa.table([pa.array(indices, pa.int64())], schema=WRITTEN_SCHEMA)

    async def _already_written(self) -> Indices:
        """Return the queries whose attempts of this round were there when this caller began, or are its own."""
        async with self._looking:
            if self._written is None:
                void = VoidAttempts(await self._market.void_attempts())
                self._written = await asyncio.to_thread(_indices_in, self._folder, void)
            return self._written

    async def _call(self, rows: pa.Table) -> list[int]:
        """Return which of the queries have attempts, once those are on disk."""
        self._calls += 1
        try:
            indices, writes = [], set()
            async for attempt in self._generate(rows):
                indices.append(attempt["index"])
                writes.add(self._files.add(attempt))
            await self._wait_for(writes)
            if self._written is not None:
                self._written.add(np.asarray(indices, np.int64))
            return indices
        finally:
            self._calls -= 1

    async def _wait_for(self, writes: set[asyncio.Future[None]]) -> None:
        self._calls_waiting += 1
        try:
            if self._calls_waiting == self._calls:  # no call is left that would fill the file
                self._files.flush()
            for write in writes:
                await asyncio.shield(write)  # other calls wait for the same file
        finally:
            self._calls_waiting -= 1


class AttemptFiles:
    """Collects attempts and writes them to files of a folder, each file as one step.

    Args:
        folder: Folder to write to.
        rows_per_file: A file is written as soon as it has so many rows,
        linger_seconds: or when its first row has waited so long.
    """

    def __init__(self, folder: Folder, rows_per_file: int, linger_seconds: float = 1.0) -> None:
        self._folder, self._rows_per_file, self._linger_seconds = folder, rows_per_file, linger_seconds
        self._collected: list[Row] = []
        self._write: asyncio.Future[None]
        self._timer: asyncio.TimerHandle
        self._running: set[asyncio.Task[None]] = set()

    def add(self, attempt: Row) -> asyncio.Future[None]:
        """Take a row of `records.ATTEMPT_SCHEMA`; the result is done when it is on disk, or holds the error of the disk."""
        if not self._collected:
            loop = asyncio.get_running_loop()
            self._write, self._timer = loop.create_future(), loop.call_later(self._linger_seconds, self.flush)
        self._collected.append(attempt)
        write = self._write
        if len(self._collected) >= self._rows_per_file:
            self.flush()
        return write

    def flush(self) -> None:
        """Start writing what has been collected, without waiting for more."""
        if self._collected:
            self._timer.cancel()
            attempts, self._collected = self._collected, []
            task = asyncio.ensure_future(self._write_file(attempts, self._write))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _write_file(self, attempts: list[Row], write: asyncio.Future[None]) -> None:
        try:
            await asyncio.to_thread(self._write_rows, attempts)
        except Exception as error:  # raised by every call that has a row in the file
            write.set_exception(error)
        else:
            write.set_result(None)

    def _write_rows(self, attempts: list[Row]) -> None:
        sink = BytesIO()
        pq.write_table(pa.Table.from_pylist(attempts, schema=ATTEMPT_SCHEMA), sink)
        self._folder.write(f"{uuid4().hex}.parquet", sink.getvalue())


class Indices:
    """A set of queries by their numbers, one byte each: a round may have millions of them."""

    def __init__(self) -> None:
        self._is_in_N = np.zeros(0, bool)

    def add(self, index: NDArray[np.int64]) -> None:
        """Put some queries in."""
        most = int(index.max(initial=-1)) + 1
        if most > len(self._is_in_N):
            self._is_in_N = np.pad(self._is_in_N, (0, 2 * most - len(self._is_in_N)))
        self._is_in_N[index] = True

    def has(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each of these queries whether it is in."""
        is_known = index < len(self._is_in_N)
        return is_known & self._is_in_N[np.where(is_known, index, 0)] if is_known.any() else is_known


def _indices_in(folder: Folder, void: VoidAttempts) -> Indices:
    found = Indices()
    read = partial(pq.read_table, filesystem=folder.filesystem, columns=["index", "attempt"])
    for tables in read_many(read, folder.files(".parquet")):
        found.add(void.dropped_from(pa.concat_tables(tables))["index"].to_numpy())
    return found
