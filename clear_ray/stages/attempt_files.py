"""The answers of a round on their way to disk: written by the caller that settled them, a few at a time.

A call ends only when its answers are on disk. So what is settled and not yet written is never more than the calls in
flight, however slow the disk is, and a disk that fails ends the calls that would have settled more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clear_ray.stages.generate import Dispatch, Generate
from clear_ray.storage import Folder

WRITTEN_SCHEMA = pa.schema([pa.field("index", pa.int64(), nullable=False)])


class GenerateToFiles:
    """Callable for `map_batches`: `Generate`, whose attempts go to files; only which queries they are of travels on.

    Args:
        dispatch: See `Generate`.
        folder: Of the round's attempts; those found there when the caller starts are not generated again.
        rows_per_file: See `AttemptFiles`.
    """

    def __init__(self, dispatch: Dispatch, folder: Folder, rows_per_file: int) -> None:
        self._generate = Generate(dispatch)
        self._files = AttemptFiles(folder, rows_per_file)
        self._written = pa.array(_indices_in(folder), pa.int64())
        self._calls = 0
        self._calls_waiting = 0

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Generate for one batch of granted queries; yield rows of `WRITTEN_SCHEMA` once their attempts are on disk."""
        due = batch.filter(pc.invert(pc.is_in(batch["index"], self._written)))
        self._calls += 1
        try:
            indices, writes = [], []
            async for attempt in self._generate(due):
                indices += attempt["index"].to_pylist()
                writes.append(self._files.add(attempt))
            await self._wait_for(writes)
        finally:
            self._calls -= 1
        yield pa.table([pa.array(indices, pa.int64())], schema=WRITTEN_SCHEMA)

    async def _wait_for(self, writes: list[asyncio.Future[None]]) -> None:
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
        folder: Where to.
        rows_per_file: A file is written as soon as it has so many rows,
        linger_seconds: or when its first row has waited so long.
    """

    def __init__(self, folder: Folder, rows_per_file: int, linger_seconds: float = 1.0) -> None:
        self._folder, self._rows_per_file, self._linger_seconds = folder, rows_per_file, linger_seconds
        self._collected: list[pa.Table] = []
        self._write: asyncio.Future[None]
        self._timer: asyncio.TimerHandle
        self._running: set[asyncio.Task[None]] = set()

    def add(self, attempt: pa.Table) -> asyncio.Future[None]:
        """Take an attempt; the result is done when it is on disk, or holds the error of the disk."""
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
            attempts, self._collected = pa.concat_tables(self._collected), []
            task = asyncio.ensure_future(self._write_file(attempts, self._write))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _write_file(self, attempts: pa.Table, write: asyncio.Future[None]) -> None:
        sink = BytesIO()
        pq.write_table(attempts, sink)
        try:
            await asyncio.to_thread(self._folder.write, f"{uuid4().hex}.parquet", sink.getvalue())
        except Exception as error:  # raised by every call that has a row in the file
            write.set_exception(error)
        else:
            write.set_result(None)


def _indices_in(folder: Folder) -> list[int]:
    indices: list[int] = []
    for path in folder.files(".parquet"):
        indices += pq.read_table(path, filesystem=folder.filesystem, columns=["index"])["index"].to_pylist()
    return indices
