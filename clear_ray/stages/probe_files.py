"""Estimates on their way to disk: a block of queries is read from the run folder, probed, and written as one file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.stages.granted import RunRows
from clear_ray.stages.probe import Probe
from clear_ray.stages.roster import Workers
from clear_ray.storage import Folder


@dataclass(frozen=True, slots=True, eq=False)
class ProbeCall:
    """A block of queries whose prompts are to be read.

    Attributes:
        index_M: The queries.
        into: Folder to write to.
        name: Name of the file there: a call that is repeated writes it again.
        tokens_K: Token grid of the engines' head.
        rows_a_call: Most prompts that an engine is sent together.
        calls_at_once: Calls that a caller has open with engines.
        direct_text: See `Probe`.
        is_measured: See `Probe`.
        engine: As in `GrantedCall`: the callers of one engine are called.
    """

    index_M: NDArray[np.int64]
    into: Folder
    name: str
    tokens_K: tuple[int, ...]
    rows_a_call: int
    calls_at_once: int
    direct_text: str = ""
    is_measured: bool = False
    engine: int = 0


class ProbeToFiles:
    """Stage 1 as a caller does it, for all blocks of a run.

    Args:
        workers: The engine workers.
        rows: The queries.
        turn: Lets one call at a time read them.
    """

    def __init__(self, workers: Workers, rows: RunRows, turn: asyncio.Lock) -> None:
        self._workers, self._rows, self._turn = workers, rows, turn
        self._stage: Probe | None = None
        self._room = asyncio.Semaphore(1)

    async def probe(self, call: ProbeCall) -> int:
        """Write the estimates of a block; return how many once they are on disk."""
        if self._stage is None:
            self._stage = Probe(self._workers, call.tokens_K, call.direct_text, is_measured=call.is_measured)
            self._room = asyncio.Semaphore(call.calls_at_once)
        async with self._turn:
            rows = await asyncio.to_thread(self._rows.queries, call.index_M)
        some = [rows.slice(first, call.rows_a_call) for first in range(0, len(rows), call.rows_a_call)]
        reading = [asyncio.ensure_future(self._estimates(self._stage, batch)) for batch in some]
        try:
            found = pa.concat_tables(table for tables in await asyncio.gather(*reading) for table in tables)
        finally:
            for task in reading:
                task.cancel()
        await asyncio.to_thread(_write, call, found)
        return len(found)

    async def _estimates(self, stage: Probe, batch: pa.Table) -> list[pa.Table]:
        async with self._room:
            return [table async for table in stage(batch)]


def _write(call: ProbeCall, found: pa.Table) -> None:
    sink = BytesIO()
    pq.write_table(found, sink)
    call.into.write(f"{call.name}.parquet", sink.getvalue())
