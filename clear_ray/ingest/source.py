"""Rows on their way in, and the place each of them came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.nested import outermost
from clear_ray.ingest.shapes import check_unread, is_known

# Text that is not UTF-8, a date beyond year 9999, a time zone that is not known here.
_UNREADABLE = (ValueError, OverflowError, LookupError, pa.ArrowException)


@dataclass(frozen=True)
class SourceBatch:
    """Some consecutive rows of one source.

    Attributes:
        rows: Each row under the source's own column names, or the error that says why it could not be read.
        origin: The source as errors name it: a file's path, or a phrase such as `generated chain_sum`.
        numbers: Line or row number of each row, counted from 1.
        unit: Whether `numbers` count lines of text or rows of a table.
        columns: Which column holds what.
        is_openai: Whether the rows are requests of a batch file.
        left_behind: Columns of a table that no query needs, which are in no row.
        said: What is to be told of the source; empty for nothing.
        is_whole: False where the rest of the source cannot be read: the input is refused whatever becomes of bad rows.
    """

    rows: Sequence[dict[str, Any] | SchemaError]
    origin: str
    numbers: Sequence[int]
    unit: Literal["line", "row"] = "row"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    is_openai: bool = False
    is_whole: bool = True
    left_behind: Sequence[str] = ()
    said: str = ""

    @classmethod
    def from_arrow(
        cls,
        table: pa.Table | pa.RecordBatch,
        *,
        origin: str,
        first_row: int = 1,
        columns: ColumnsConfig | None = None,
        left_behind: Sequence[str] | None = None,
    ) -> SourceBatch:
        """Return the rows of an Arrow table or record batch; columns that no query needs are left behind.

        Args:
            table: The rows; dictionary-encoded and nested columns are read as what they stand for.
            origin: The source as errors name it.
            first_row: Number of the table's first row within the source, counted from 1.
            columns: Which column holds what; the default names if not given.
            left_behind: Columns that were left behind already; those of the table's own if not given.
        """
        columns = columns or ColumnsConfig()
        try:
            check_unread(holding_columns(table), columns, where=origin)
        except SchemaError as error:
            return cls.unreadable(error, origin=origin)
        names = list(table.schema.names)
        table = table.select(wanted_columns(names, columns))
        left_behind = [name for name in names if name not in table.schema.names] if left_behind is None else left_behind
        try:
            rows: list[dict[str, Any] | SchemaError] = list(table.to_pylist())
        except _UNREADABLE:
            rows = [_row_alone(table.slice(k, 1), f"{origin} row {first_row + k}") for k in range(table.num_rows)]
        return cls(rows, origin, range(first_row, first_row + len(rows)), "row", columns, left_behind=left_behind)

    @classmethod
    def unreadable(cls, error: SchemaError, *, origin: str) -> SourceBatch:
        """Return a batch that stands for a source, or the rest of one, that cannot be read."""
        return cls([error], origin, [1], is_whole=False)

    def place(self, k: int) -> str:
        """Return where the row at position `k` came from, as `file:line` or `file row number`."""
        return f"{self.origin}:{self.numbers[k]}" if self.unit == "line" else f"{self.origin} row {self.numbers[k]}"


def wanted_columns(names: Sequence[str], columns: ColumnsConfig) -> list[str]:
    """Return the columns of a table that a query may need: those that are configured, and those that may be recognised."""
    configured = {outermost(name, names) for name in columns.model_dump().values()}
    return [name for name in names if name in configured or is_known(name)]


def holding_columns(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the columns that hold something: neither nulls nor empty lists alone."""
    found = zip(table.schema.names, table.columns, strict=True)
    return [name for name, column in found if column.null_count < len(column) and not _is_of_empty_lists(column)]


def _is_of_empty_lists(column: pa.Array | pa.ChunkedArray) -> bool:
    is_of_lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return is_of_lists and not pc.sum(pc.list_value_length(column)).as_py()


def _row_alone(row: pa.Table | pa.RecordBatch, place: str) -> dict[str, Any] | SchemaError:
    try:
        read: dict[str, Any] = row.to_pylist()[0]
    except _UNREADABLE as error:
        remedy = "Store text as UTF-8, and dates as text."
        return SchemaError("the row cannot be read", place, f"{type(error).__name__}: {error}", remedy)
    return read
