"""Rows of a run folder's files, turned into others and written in order: here, or by Ray Data if they are many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

Source = tuple[Sequence[str], Callable[[pa.Table], pa.Table]]
"""Paths of files, and what makes other rows of theirs, all with one schema."""


def write_sorted(sources: Sequence[Source], target: Folder, *, by: Sequence[str], is_few: bool) -> None:
    """Write the rows of all sources to a folder in the order of some columns.

    Args:
        sources: Where the rows come from, at least one of them with a file.
        target: Folder to write to, in the same file system.
        by: The columns.
        is_few: Whether they fit this process.
    """
    if is_few:
        _write_here(sources, target, by)
    else:
        _write_spread(sources, target, by)


def _write_here(sources: Sequence[Source], target: Folder, by: Sequence[str]) -> None:
    tables = [
        turned(_alike(pq.read_table(path, filesystem=target.filesystem), schema))
        for paths, turned in sources
        if paths
        for schema in [pa.unify_schemas([pq.read_schema(path, filesystem=target.filesystem) for path in paths])]
        for path in paths
    ]
    rows = pa.concat_tables(tables).sort_by([(name, "ascending") for name in by])
    sink = BytesIO()
    pq.write_table(rows, sink)
    target.write("rows-0.parquet", sink.getvalue())


def _alike(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns that only other files have, as those of a run that an older version began."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def _write_spread(sources: Sequence[Source], target: Folder, by: Sequence[str]) -> None:
    import ray.data

    parts: list[Dataset] = [
        ray.data.read_parquet(list(paths), filesystem=target.filesystem).map_batches(turned, batch_format="pyarrow")
        for paths, turned in sources
        if paths
    ]
    rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    rows.sort(list(by)).write_parquet(target.path, filesystem=target.filesystem)
