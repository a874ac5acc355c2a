"""Parquet, one slice of a row group at a time, reading only the columns that a query needs."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.nested import outermost
from clear_ray.ingest.shapes import check_unread
from clear_ray.ingest.source import SourceBatch, wanted_columns

_BATCH_ROWS = 2_048
_DEFAULTS = ColumnsConfig()


def read_parquet(
    filesystem: pafs.FileSystem, path: str, *, origin: str, columns: ColumnsConfig
) -> Iterator[SourceBatch]:
    """Yield the rows of a Parquet file.

    Args:
        filesystem: Where the file lies.
        path: The file within it.
        origin: The file as errors name it.
        columns: Which column holds what.
    """
    first_row = 1
    try:
        with filesystem.open_input_file(path) as source, _open(source) as file:
            refusal = missing_columns(file.schema_arrow.names, origin, columns)
            if refusal:
                yield SourceBatch.unreadable(refusal, origin=origin)
                return
            check_unread(_holding(file), columns, where=origin)
            wanted = wanted_columns(file.schema_arrow.names, columns)
            left_behind = [name for name in file.schema_arrow.names if name not in wanted]
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
                yield SourceBatch.from_arrow(
                    batch, origin=origin, first_row=first_row, columns=columns, left_behind=left_behind
                )
                first_row += batch.num_rows
    except SchemaError as error:
        yield SourceBatch.unreadable(error, origin=origin)
    except (OSError, ValueError, pa.ArrowException) as error:
        where = origin if first_row == 1 else f"{origin}, after row {first_row - 1}"
        refusal = SchemaError("the Parquet file cannot be read", where, str(error), "Write the file again.")
        yield SourceBatch.unreadable(refusal, origin=origin)


def _holding(file: pq.ParquetFile) -> set[str]:
    """Return the columns that hold something, as far as the file says which hold nulls and empty lists alone."""
    found = set()
    for group in range(file.metadata.num_row_groups):
        of_group = file.metadata.row_group(group)
        for number in range(of_group.num_columns):
            column = of_group.column(number)
            nulls = column.statistics.null_count if column.is_stats_set and column.statistics.has_null_count else 0
            if nulls < column.num_values:
                found.add(column.path_in_schema)
    return {
        name for name in file.schema_arrow.names if any(path == name or path.startswith(f"{name}.") for path in found)
    }


def _open(source: pa.NativeFile) -> pq.ParquetFile:
    # Without checksums Arrow reads some damaged pages as nulls.
    return pq.ParquetFile(source, page_checksum_verification=True)


def missing_columns(names: list[str], origin: str, columns: ColumnsConfig) -> SchemaError | None:
    """Return what is wrong with the columns themselves, once for the file and not once for each row."""
    for setting in columns.model_fields_set & {"query_id", "prompt", "messages"}:
        column = getattr(columns, setting)
        if outermost(column, names) not in names and column != getattr(_DEFAULTS, setting):
            what = f"column {column!r} is missing"
            return SchemaError(what, origin, f"columns {', '.join(names)}", "Map the names under input.columns.")
    twice = [name for name in wanted_columns(names, columns) if names.count(name) > 1]
    if twice:
        return SchemaError(f"column {twice[0]!r} is there twice", origin, "", "Rename one of them.")
    return None
