"""Estimates on their way to disk: the queries of some calls are a file, written by the caller that had them read.

They pass no object store, and the driver hears how many there are: a query's curves are five kilobytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.stages.gate import Gate
from clear_ray.stages.granted import RunRows
from clear_ray.stages.homes import Homes
from clear_ray.stages.probe import Probe
from clear_ray.storage import Folder

CALLS_A_FILE = 8


class ProbeToFiles:
    """A caller of stage 1: `Probe`, whose estimates go to files, whole or not at all.

    Args:
        probe: What reads them; made here, in the caller's process.
        folder: The run folder, with the queries.
        into: Folder to write to. What Ray makes again takes the place of the first.
        homes: Where queries are at home; a stretch of them is a call.
        calls: Calls that may be open at once.
        gate: Lets in so many lists of queries, in the order in which they come; all if not given.
        begun: How many of these a caller before has had.
    """

    def __init__(
        self,
        probe: Callable[[], Probe],
        folder: Folder,
        into: Folder,
        *,
        homes: Homes,
        calls: int,
        gate: Gate | None = None,
        begun: int = 0,
    ) -> None:
        self._probe, self._rows, self._into = probe(), RunRows(folder), into
        self._homes, self._turns = homes, asyncio.Semaphore(calls)
        self._one_at_a_time = asyncio.Lock()
        self._gate, self._begun, self._in_order = gate, begun, asyncio.Lock()

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield how many queries have been read and written, the first and their file: `rows`, `first` and `file`.

        Errors are those of `Probe`.

        Args:
            batch: Their numbers, in a column `index`.
        """
        index = batch["index"].to_numpy()
        if not len(index):
            yield pa.table({"rows": [0], "first": [-1], "file": [""]})
            return
        if self._gate is not None:
            async with self._in_order:
                await self._gate.passed(self._begun)
                self._begun += 1
        file = await self._read_all(index)
        yield pa.table({"rows": [len(index)], "first": [int(index[0])], "file": [file]})

    async def _read_all(self, index: NDArray[np.int64]) -> str:
        """Have some queries read; return the file of their estimates."""
        async with self._one_at_a_time:  # some files are kept at hand
            queries = await asyncio.to_thread(self._rows.queries, index)
        found = await asyncio.gather(*[self._read(queries[part]) for part in self._homes.parts(index)])
        table = pa.concat_tables([table for tables in found for table in tables])
        return await asyncio.to_thread(self._write, table)

    async def _read(self, queries: pa.Table) -> list[pa.Table]:
        async with self._turns:
            return [table async for table in self._probe(queries)]

    def _write(self, estimates: pa.Table) -> str:
        sink, first = BytesIO(), estimates["index"].to_numpy().min()
        # No two curves are alike: a dictionary of their points takes five times as long, and more room.
        pq.write_table(estimates, sink, use_dictionary=["task"], write_statistics=["index"])
        name = f"from-{first:010d}.parquet"
        self._into.write(name, sink.getvalue())
        return f"{self._into.path}/{name}"
