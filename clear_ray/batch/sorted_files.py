"""Rows of a run folder's files, turned into others and written in order: here, or by Ray Data if they are very many.

Here they are sorted some at a time. What does not fit lies on this machine's disk meanwhile, sorted, and each file that is
written is put together from a stretch of every part, which is read then. So a row costs tens of microseconds, and memory
stays flat.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.storage import Folder, read_many

if TYPE_CHECKING:
    from ray.data import Dataset

Source = tuple[Sequence[str], Callable[[pa.Table], pa.Table]]
"""Paths of files, and what makes other rows of theirs, all with one schema; if it has `reads`, of those columns alone."""

_MOST_BYTES, _MOST_STORED_BYTES, _MOST_LOCAL_FILES = 4_000_000, 500_000, 4
_FILE_ROWS, _FILE_BYTES = 5_000, 32_000_000
_ROWS_AT_ONCE = 512


def write_sorted(sources: Sequence[Source], target: Folder, *, by: Sequence[str], is_few: bool) -> None:
    """Write the rows of all sources to a folder in the order of some columns.

    Args:
        sources: Where the rows come from, at least one of them with a file.
        target: Folder to write to, in the same file system.
        by: The columns, the first of them whole numbers from 0.
        is_few: Whether this process is to do it.
    """
    if is_few:
        _write_here(sources, target, by)
    else:
        _write_spread(sources, target, by)


def _write_here(sources: Sequence[Source], target: Folder, by: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="clear_ray_sorted_") as scratch:
        parts = list(_sorted_parts(sources, target, by, Path(scratch)))
        last = max((int(part.key_N[-1]) for part in parts if len(part.key_N)), default=0)
        rows, held_bytes = sum(len(part.key_N) for part in parts), sum(part.bytes for part in parts)
        files = max(math.ceil(rows / _FILE_ROWS), math.ceil(held_bytes / _FILE_BYTES), 1)
        bounds = np.linspace(0, last + 1, files + 1).astype(np.int64)
        firsts = [np.searchsorted(part.key_N, bounds) for part in parts]
        for number in range(len(bounds) - 1):
            stretches = [part.read(at[number], at[number + 1]) for part, at in zip(parts, firsts, strict=True)]
            sink = BytesIO()
            pq.write_table(_in_order(pa.concat_tables(stretches), by), sink)
            target.write(f"rows-{number:05d}.parquet", sink.getvalue())


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows in order.

    Attributes:
        key_N: The first of the columns that they are in order of.
        bytes: How much memory all of them take.
        rows: The rows, or the file that they are in.
    """

    key_N: NDArray[np.int64]
    bytes: int
    rows: pa.Table | Path

    @staticmethod
    def of(rows: pa.Table, by: Sequence[str], file: Path | None = None) -> _Part:
        """Put rows in order, and into a file if one is given."""
        ordered = _in_order(rows, by)
        kept: pa.Table | Path = ordered
        if file is not None:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, ordered.schema) as writer:
                writer.write_table(ordered.combine_chunks(), max_chunksize=_ROWS_AT_ONCE)
            kept = file
        return _Part(ordered[by[0]].to_numpy().copy(), ordered.nbytes, kept)

    def read(self, first: int, end: int) -> pa.Table:
        """Return a stretch of the rows."""
        if not isinstance(self.rows, Path):
            return self.rows[first:end]
        # Not mapped: what had been looked at would count as memory of this process.
        with pa.OSFile(str(self.rows)) as source:
            file = pa.ipc.open_file(source)
            numbers = range(first // _ROWS_AT_ONCE, -(-end // _ROWS_AT_ONCE) if end > first else first // _ROWS_AT_ONCE)
            read = pa.Table.from_batches([file.get_batch(number) for number in numbers], file.schema)
        return read.slice(first % _ROWS_AT_ONCE, end - first)


def _sorted_parts(sources: Sequence[Source], target: Folder, by: Sequence[str], scratch: Path) -> Iterator[_Part]:
    """Yield the rows of all sources in parts, each sorted; all but the last are on disk."""
    waiting: list[pa.Table] = []
    held_bytes = number = 0
    for paths, turned in sources:
        if not paths:
            continue

        def read(path: str, turned: Callable[[pa.Table], pa.Table] = turned) -> pa.Table:
            with target.filesystem.open_input_file(path) as source:
                columns = getattr(turned, "reads", None)
                return turned(pq.ParquetFile(source).read(columns=columns and list(columns), use_threads=False))

        for some in _groups(paths, target):
            tables = [table for found in read_many(read, some, is_local=target.is_local) for table in found]
            waiting += tables
            held_bytes += sum(table.nbytes for table in tables)
            if held_bytes > _MOST_BYTES:
                yield _Part.of(pa.concat_tables(waiting), by, scratch / f"{number}.arrow")
                waiting, held_bytes, number = [], 0, number + 1
    if waiting:
        yield _Part.of(pa.concat_tables(waiting), by)


def _groups(paths: Sequence[str], target: Folder) -> Iterator[list[str]]:
    """Yield the paths some at a time, which hold so many bytes together, or a single one; of a disk at hand but a few."""
    most = _MOST_LOCAL_FILES if target.is_local else len(paths)
    group: list[str] = []
    stored_bytes = 0
    for path, found in zip(paths, target.filesystem.get_file_info(list(paths)), strict=True):
        if group and (stored_bytes + found.size > _MOST_STORED_BYTES or len(group) >= most):
            yield group
            group, stored_bytes = [], 0
        group.append(path)
        stored_bytes += found.size
    yield group


def _in_order(rows: pa.Table, by: Sequence[str]) -> pa.Table:
    return rows.sort_by([(name, "ascending") for name in by])


def _write_spread(sources: Sequence[Source], target: Folder, by: Sequence[str]) -> None:
    import ray.data

    parts: list[Dataset] = [
        ray.data.read_parquet(list(paths), filesystem=target.filesystem).map_batches(turned, batch_format="pyarrow")
        for paths, turned in sources
        if paths
    ]
    rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    rows.sort(list(by)).write_parquet(target.path, filesystem=target.filesystem)
